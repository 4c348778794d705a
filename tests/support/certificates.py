"""A certificate authority of the test's own, by the openssl command line: servers and clients, as PEM files."""

import subprocess
from pathlib import Path


def openssl(*words):
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"openssl {' '.join(map(str, words))}: {done.stderr}"


class Pair:
    """`certificate` and `key` are files; `both` holds the two, as Kafka's keystores of type PEM want them."""

    def __init__(self, directory, name):
        self.certificate, self.key, self.both = (directory / f"{name}.{end}" for end in ("pem", "key", "both.pem"))


class Authority:
    def __init__(self, directory, name="test authority"):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.pair = Pair(self.directory, "authority")
        self.certificate = self.pair.certificate
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", self.pair.key, "-out", self.certificate)

    def issue(self, name, names="IP:127.0.0.1,DNS:localhost"):
        """`names`: what stands in the certificate for the host."""
        pair = Pair(self.directory, name)
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n"
                              "keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", pair.key, "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.pair.key, "-CAcreateserial",
                "-days", "2", "-extfile", extensions, "-out", pair.certificate)
        pair.both.write_text(pair.key.read_text() + pair.certificate.read_text())
        return pair
