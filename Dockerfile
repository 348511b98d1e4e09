# An exact version: every package of requirements.txt has wheels for it, on amd64 and arm64.
FROM python:3.13.14-slim-bookworm AS build
WORKDIR /build
COPY requirements.txt .
RUN python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
    --require-hashes --only-binary :all: --requirement requirements.txt

FROM python:3.13.14-slim-bookworm
# Nothing is installed at run time: neither pip nor what could bring it back stays.
RUN python -m pip uninstall --yes --root-user-action=ignore pip \
 && rm -rf /usr/local/lib/python3.13/ensurepip
COPY --from=build /venv /venv
WORKDIR /app
# What .dockerignore lets in: the service and nothing else.
COPY . .
# After a clone with a umask of 027 or 077 its files are its owner's alone, and COPY keeps that.
RUN chmod -R a+rX /app
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0
# A new named volume becomes what its folder here is: whoever this runs as may write there.
RUN mkdir --mode=1777 /files
LABEL org.opencontainers.image.title="e2b-proxy" \
      org.opencontainers.image.description="A code interpreter for LibreChat, in E2B's sandboxes" \
      org.opencontainers.image.version="1.1.0" \
      org.opencontainers.image.licenses="MIT"
USER 65532:65532
EXPOSE 3001
# Short, as LibreChat waits for the first one. It asks /health alone: that makes no sandbox.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 3001), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
CMD ["gunicorn", "proxy:app"]
