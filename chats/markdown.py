"""The single place where Markdown becomes HTML; static/js/markdown.js is its twin in the browser.

Both give the same bytes for the same text (tests/chats/test_markdown_parity.py), so that an
answer looks the same while it streams and after a reload. A change here is a change there.
"""

import re
from collections.abc import Iterator, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

import nh3
from django.utils.safestring import SafeString, mark_safe
from linkify_it import LinkifyIt
from markdown_it import MarkdownIt
from markdown_it.common.utils import unescapeAll
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline, linkify
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

MAX_CHARACTERS = 100_000
MAX_NESTING = 40
MAX_CELLS = 20_000  # of a table, counting those that short rows are filled up with
MAX_ADDRESSES = 200_000  # characters of links' addresses
MAX_BRACKETS = 5000  # for each one, what follows is looked through for the end of a link

# Text that costs more than it is worth to parse: very long runs of one kind of mark.
BOMB = re.compile(r"(?:[\[\]()!*_~`<>&\\][ ]?){400}|(?:>[ \t]*){13}")
ALLOWED_LINK = re.compile(
    r"^(?:https?://[^/\\?#@]+(?:[/?#]|$)|mailto:[^?#])", re.IGNORECASE | re.ASCII
)
WEB_SCHEME = re.compile(r"(?:^|[^a-z0-9.+-])https?$", re.IGNORECASE | re.ASCII)
HOST = re.compile(r"^https?://([^/?#:[]+|\[[^/?#]*\])", re.IGNORECASE | re.ASCII)
LANGUAGE = re.compile(r"^[ \t]*([A-Za-z0-9_+#.-]{1,30})(?![^ \t{:,])")
INVISIBLE = re.compile("[\x01-\x08\v\f\x0e-\x1f\x7f-\x9f\ufeff]")
PATH = r"[\w\-./?#%&=+:;,@!~*'$]"
WEB_ADDRESS = re.compile(
    r"//(?![^\s/?#\\]*@)(?:[\w-]+(?:\.[\w-]+)*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?!\w)"
    rf"(?:[/?#](?:{PATH}|\((?:{PATH}|\({PATH}*\))*\)|\[{PATH}*\]){{0,2000}})?"
)
EDGES = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(
    map(chr, range(0x2000, 0x200B))
)
ALIGNMENT = {
    "text-align:left": "is-left",
    "text-align:center": "is-center",
    "text-align:right": "is-right",
}
CLASSES = {
    "a": re.compile(r"link"),
    "code": re.compile(r"language-[a-z0-9_+#.-]{1,30}"),
    "div": re.compile(r"code|code__head|table"),
    "p": re.compile(r"plain"),
    "span": re.compile(r"code__language|link__host"),
    "td": re.compile(r"is-(left|center|right)"),
    "th": re.compile(r"is-(left|center|right)"),
}


@lru_cache(maxsize=128)
def render(text: str) -> SafeString:
    """The HTML of a Markdown text written by nobody one trusts."""
    text = INVISIBLE.sub("", re.sub("[\ud800-\udfff]", "\ufffd", text))
    html = None if _is_too_much(text) else _render(text)
    return mark_safe(_sanitiser.clean(_plain(text) if html is None else html))  # noqa: S308


def _is_too_much(text: str) -> bool:
    lines = text.split("\n")
    cells = max(line.count("|") for line in lines) * len(lines)  # short rows are filled up
    is_large = len(text) > MAX_CHARACTERS or cells > MAX_CELLS or text.count("[") > MAX_BRACKETS
    return is_large or BOMB.search(text) is not None


def _render(text: str) -> str | None:
    """None when blocks are nested so deeply that the parser would drop some."""
    tokens = _markdown.parse(text)
    if any(token.level >= MAX_NESTING - 2 for token in tokens) or _repeats_too_much(tokens):
        return None
    return str(_markdown.renderer.render(tokens, _markdown.options, {}))


def _repeats_too_much(tokens: Sequence[Token]) -> bool:
    """A reference of a few characters repeats its whole address each time."""
    spans = [span for token in tokens for span in token.children or []]
    return sum(len(str(span.attrs.get("href", ""))) for span in spans) > MAX_ADDRESSES


def _plain(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    return f'<p class="plain">{_escape(text)}</p>\n'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _trim_blocks(state: StateCore) -> None:
    """The two parsers do not agree on which rare spaces to trim; so both trim them all."""
    for token in state.tokens:
        if token.type == "inline":
            token.content = token.content.strip(EDGES)


def _web_address_length(_: LinkifyIt, text: str, position: int) -> int:
    """Our own idea of where an address in running text ends, the same on both sides."""
    found = WEB_ADDRESS.match(text, position)
    return len(found[0].rstrip(".,:;!?'*~_")) if found else 0


def _linkify(state: StateInline, silent: bool) -> bool:
    """The parser's own rule, kept from reading all the text so far at every `://`."""
    before, start = state.pending, state.pos
    state.pending = before[-6:]
    found = WEB_SCHEME.search(state.pending) is not None and linkify(state, True)
    state.pending = before
    if silent or not found:
        return found
    state.pos = start
    return linkify(state, False)


def _tidy_links(state: StateCore) -> None:
    """Images become links (nothing is ever fetched) and links say where they go."""
    for block in state.tokens:
        if block.type == "inline" and block.children:
            block.children = list(_with_hosts(_without_images(block.children)))


def _without_images(children: Sequence[Token]) -> Iterator[Token]:
    inside_link = False
    for token in children:
        if token.type in {"link_open", "link_close"}:
            inside_link = token.type == "link_open"
        if token.type != "image":
            yield token
            continue
        label = Token("text", "", 0, content=_text_of(token.children or []) or "image")
        href = {"href": str(token.attrs.get("src", ""))}
        yield from (
            [label]
            if inside_link
            else [
                Token("link_open", "a", 1, attrs=href),  # type: ignore[arg-type]
                label,
                Token("link_close", "a", -1),
            ]
        )


def _with_hosts(children: Iterator[Token]) -> Iterator[Token]:
    href, text = "", ""
    for token in children:
        if token.type == "link_open":
            href, text = str(token.attrs.get("href", "")), ""
            token.attrs = {
                "class": "link",
                "href": href,
                "rel": "noopener noreferrer nofollow",
                "target": "_blank",
            }
        elif token.type == "link_close":
            host = HOST.match(href)
            token.meta = {"host": host[1] if host and host[1] != _host_shown(text) else ""}
        else:
            text += token.content
        yield token


def _host_shown(text: str) -> str:
    """The host a link's own words name, if they are a web address and nothing else."""
    return re.split("[/?#]", re.sub("^https?://", "", text.strip(EDGES), flags=re.IGNORECASE))[0]


def _text_of(children: Sequence[Token]) -> str:
    parts = [
        _text_of(token.children or []) if token.type == "image" else token.content or " "
        for token in children
        if token.nesting == 0
    ]
    return "".join(parts)


class Renderer(RendererHTML):
    """markdown-it's renderer with this site's code boxes, tables and links."""

    def fence(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        found = LANGUAGE.match(unescapeAll(tokens[idx].info))
        language = found[1].lower() if found else ""
        class_ = f' class="language-{language}"' if language else ""
        return (
            f'<div class="code"><div class="code__head"><span class="code__language">{language}'
            f"</span></div><pre><code{class_}>{_escape(tokens[idx].content)}</code></pre></div>\n"
        )

    def code_block(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return self.fence(tokens, idx, options, env)

    def table_open(self, *args: Any) -> str:
        return '<div class="table"><table>\n'

    def table_close(self, *args: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], idx: int, *args: Any) -> str:
        return self._cell(tokens[idx])

    def td_open(self, tokens: Sequence[Token], idx: int, *args: Any) -> str:
        return self._cell(tokens[idx])

    def _cell(self, token: Token) -> str:
        class_ = ALIGNMENT.get(str(token.attrs.get("style", "")))
        return f'<{token.tag} class="{class_}">' if class_ else f"<{token.tag}>"

    def link_close(self, tokens: Sequence[Token], idx: int, *args: Any) -> str:
        host = tokens[idx].meta.get("host")
        return f'</a><span class="link__host"> ({_escape(host)})</span>' if host else "</a>"


def _parser() -> MarkdownIt:
    options = {"html": False, "linkify": True, "breaks": True, "maxNesting": MAX_NESTING}
    parser = MarkdownIt("default", options, renderer_cls=Renderer)
    assert parser.linkify is not None
    parser.linkify.set({"fuzzy_link": False, "fuzzy_email": False})
    for schema in ("//", "ftp:", "mailto:"):
        parser.linkify.add(schema, None)
    for schema in ("http:", "https:"):
        parser.linkify.add(schema, {"validate": _web_address_length})
    parser.validateLink = _is_allowed_link  # type: ignore[method-assign]
    parser.inline.ruler.at("linkify", _linkify)
    parser.core.ruler.after("block", "trim_blocks", _trim_blocks)
    parser.core.ruler.push("tidy_links", _tidy_links)
    return parser


def _is_allowed_link(url: str) -> bool:
    """Whether this is an absolute web or mail address, without a user name to deceive with."""
    if not ALLOWED_LINK.match(url):
        return False
    attribute = _escape(url).replace('"', "&quot;")
    return " href=" in _sanitiser.clean(f'<a href="{attribute}"></a>')


def _keep_class(tag: str, attribute: str, value: str) -> str | None:
    if attribute != "class":
        return value
    return value if tag in CLASSES and CLASSES[tag].fullmatch(value) else None


_markdown = _parser()
_sanitiser = nh3.Cleaner(
    tags=set(
        "a blockquote br code div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong"
        " table tbody td th thead tr ul".split()
    ),
    attributes={
        "a": {"class", "href", "rel", "target"},
        "ol": {"start"},
        **{tag: {"class"} for tag in CLASSES if tag != "a"},
    },
    attribute_filter=_keep_class,
    link_rel=None,
    url_schemes={"http", "https", "mailto"},
)
