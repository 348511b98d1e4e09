// The HTML that LibreChat's chat makes of Markdown.
//
// LibreChat renders messages with react-markdown and no urlTransform of its own. Its plugins
// (tables, mathematics, highlighting) do not touch images and are left out. Its image component
// puts its own base URL before an address that starts with /images/.

import { createElement } from 'react';
import { renderToStaticMarkup } from 'react-dom/server';
import Markdown from 'react-markdown';

export function markdown(text) {
  return renderToStaticMarkup(createElement(Markdown, null, text));
}
