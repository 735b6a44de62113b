"""A file server with HTTPS and ranges that can be told to misbehave."""

import datetime as dt
import ipaddress
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(days=1))
    builder = builder.not_valid_after(now + dt.timedelta(days=1))
    builder = builder.add_extension(address, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = builder.sign(key, hashes.SHA256())
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private


class FileServer:
    """Serves `content` at any path; what it is asked is kept in `asked`.

    cut_after: bytes after which a connection breaks off, as often as `cuts` says.
    redirect: where a request is sent on to. status: an answer other than the file.
    """

    def __init__(self, folder: Path, content: bytes) -> None:
        self.content, self.tag = content, '"one"'
        self.cut_after, self.cuts = 0, 0
        self.redirect, self.status = "", 0
        self.asked: list[tuple[str, str]] = []
        self.certificate, key = make_certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        # It looks so often whether it is to end; by itself every half second.
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, asked: Any) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for these headers of a request."""
        tag, size = {"ETag": self.tag}, len(self.content)
        if not asked.get("Range") or asked.get("If-Range") != self.tag:
            return 200, tag, self.content
        start = int(asked["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= size:
            return 416, {"Content-Range": f"bytes */{size}"}, b""
        span = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        return 206, tag | span, self.content[start:]

    def _handler(self) -> Any:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append((self.path, self.headers.get("Range", "")))
                if owner.redirect:
                    self._say(302, {"Location": owner.redirect}, b"")
                elif owner.status:
                    self._say(owner.status, {}, b"no")
                else:
                    self._say(*owner.answer(self.headers))

            def _say(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if owner.cuts and body:
                    owner.cuts -= 1
                    body = body[: owner.cut_after]
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                return

        return Handler
