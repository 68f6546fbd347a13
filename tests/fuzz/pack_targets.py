"""Packs that are damaged, or that somebody else has made: mutated as a whole, or in a part that the rest fits to."""

import io
import random
import zipfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flcore.identity.lead_keys import SigningKey
from flcore.job.pack import open_pack
from tests.flcore.job.forged_packs import FILES, Part, manifest_of, parts_of, zipped
from tests.fuzz.file_targets import mutate_toml, rarely_valid
from tests.fuzz.mutations import mutate_bytes, mutate_json
from tests.fuzz.target import require


class Packs:
    """A pack: its bytes, its manifest, its signature, a name in it, or its contract is mutated."""

    name, share, cases = "packs", 10, 5

    def __init__(self, directory: Path) -> None:
        self._path = directory / "mutated.flpack"
        self._signer = SigningKey("alice", Ed25519PrivateKey.from_private_bytes(bytes(32)))
        self._parts = parts_of(signer=self._signer)
        self._whole = zipped(self._parts)

    def make(self, draw: random.Random, case: int) -> bytes:
        manifest, *files, signature = self._parts
        match case:
            case 0:
                return rarely_valid(draw, self._whole, mutate_bytes, self._whole)
            case 1:
                data = mutate_json(draw, manifest.content, manifest.content)
                return zipped([Part(manifest.name, data), *files])
            case 2:
                data = mutate_json(draw, signature.content, signature.content)
                return zipped([manifest, *files, Part(signature.name, data)])
            case 3:
                name = mutate_bytes(draw, b"sub/more.py", b"/../site.toml\0\\").decode("utf-8", "replace")
                renamed = {name if each == "sub/more.py" else each: content for each, content in FILES.items()}
                return zipped(parts_of(renamed, manifest_of(renamed)))
            case _:
                job = mutate_toml(draw, FILES["job.toml"], FILES["job.toml"])
                return zipped(parts_of({**FILES, "job.toml": job}))

    def feed(self, case: int, data: bytes) -> None:
        self._path.write_bytes(data)
        pack = open_pack(self._path, 8 << 20)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = [Part(name, archive.read(name)) for name in archive.namelist()]
        require(zipped(found) == data, "another zip file than the writer's")
        names = [file.name for file in pack.manifest.files]
        require([part.name for part in found][1 : 1 + len(names)] == names, "other files than the manifest's")
        for name in names:
            require((self._path.parent / name).resolve().is_relative_to(self._path.parent.resolve()), "a path outside")
