"""A certificate for one sink, made with the trustme library."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


class Certificate:
    """A certificate in a temporary folder, with the authority that issued it.

    :param names: host names and addresses that it is valid for.
    :raises RuntimeError: trustme is not installed.
    """

    def __init__(self, *names: str) -> None:
        try:
            import trustme
        except ImportError:
            raise RuntimeError(
                "a sink with TLS needs a certificate: pip install trustme to have one made, or pass certfile= and "
                "keyfile="
            ) from None
        authority = trustme.CA()
        issued = authority.issue_cert(*dict.fromkeys(names))
        self._folder = Path(tempfile.mkdtemp(prefix="greensmtp-sink-"))
        #: The private key and the certificate chain (PEM).
        self.certfile = self._folder / "server.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(self.certfile))
        self.ca_file = self._folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)
