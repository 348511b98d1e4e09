"""Pictures that are published: files in IMAGE_DIR, which a link in the chat shows."""

import re
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

from config import log
from pictures.picture import JPEG, PNG
from run import Run

_SWEEP_INTERVAL_S = 60  # a folder of 50,000 files takes 0.3 s
_NAME = r"e2b-[A-Za-z0-9_-]{32}\.(png|jpg)"


class Publisher:
    """A folder, and the address at which somebody serves it."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self._folder = folder
        self._base_url = base_url.rstrip("/")

    def publish(self, run: Run) -> list[str]:
        """Write a run's pictures into the folder. Returns their addresses.

        A picture that cannot be written is noted in the run."""
        urls = []
        for picture in run.pictures:
            suffix = "png" if picture.media_type == PNG else "jpg"
            token = secrets.token_urlsafe(24)  # nobody guesses 192 bits
            name = f"e2b-{token}.{suffix}"
            try:
                self._write(name, picture.data)
            except OSError as exc:
                log.error(
                    "a picture could not be published, check IMAGE_DIR: %r", str(exc)
                )
                run.leave_out("picture", "it could not be stored by this service")
            else:
                urls.append(f"{self._base_url}/{name}")
        return urls

    def _write(self, name: str, data: bytes) -> None:
        """Write a file that nobody sees before it is whole. Raises OSError."""
        part = self._folder / f"{name}.part"
        try:
            part.write_bytes(data)
            part.chmod(0o644)  # whatever the umask: LibreChat runs as another user
            part.rename(self._folder / name)
        except OSError:
            with suppress(OSError):  # the first error says more
                part.unlink()
            raise

    def find(self, name: str) -> tuple[Path, str] | None:
        """The file and the media type of a picture that was published here."""
        if not re.fullmatch(_NAME, name):
            return None
        path = self._folder / name
        if path.is_symlink() or not path.is_file():
            return None
        media_type = PNG if path.suffix == ".png" else JPEG
        return path, media_type

    def start_removing_old(self, ttl_hours: int) -> None:
        """Remove older pictures in the background, at once and then each minute."""
        threading.Thread(
            target=self._keep_removing_old, args=(ttl_hours,), daemon=True
        ).start()

    def _keep_removing_old(self, ttl_hours: int) -> None:
        while True:
            self.remove_old(ttl_hours)
            time.sleep(_SWEEP_INTERVAL_S)

    def remove_old(self, ttl_hours: int) -> None:
        oldest = time.time() - ttl_hours * 3600
        for path in self._folder.glob("e2b-*"):
            name = path.name.removesuffix(".part")
            if not re.fullmatch(_NAME, name):
                continue
            with suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    path.unlink()
