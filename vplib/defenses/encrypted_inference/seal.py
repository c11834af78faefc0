"""Microsoft SEAL as this notebook needs it: parameters at 128 bits, its objects as bytes."""

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

try:
    import tenseal
    import zstandard
    from tenseal import sealapi
except ImportError as error:
    raise ImportError(
        f"{error}; encrypted inference needs the extra `he`: pip install tenseal zstandard"
    ) from None

# Bits of the coefficient modulus up to which a ternary secret has 128 bits of classical security:
# Albrecht et al., Homomorphic encryption security standard, 2018, table 1.
STANDARD_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
SECURITY = 128


@dataclass(frozen=True)
class Parameters:
    """Encryption parameters of CKKS, at 128 bits or not at all.

    Args:
        poly_modulus_degree: N; N / 2 numbers fit into a ciphertext.
        coeff_bits: sizes of the primes; the last serves key switching only.
        scale_bits: a value of 1 is encoded as 2^scale_bits.

    Raises:
        ValueError: below 128 bits of security by the homomorphic encryption standard's table.
    """

    poly_modulus_degree: int
    coeff_bits: tuple[int, ...]
    scale_bits: int

    def __post_init__(self):
        """Refuses weak parameters, whoever makes them."""
        limit = STANDARD_BITS.get(self.poly_modulus_degree)
        if limit is None:
            raise ValueError(
                f"poly_modulus_degree must be one of {list(STANDARD_BITS)}, "
                f"not {self.poly_modulus_degree}"
            )
        if not self.coeff_bits or not all(2 <= bits <= 60 for bits in self.coeff_bits):
            raise ValueError(f"coeff_bits must be 2 to 60 each, not {self.coeff_bits}")
        if sum(self.coeff_bits) > limit:
            raise ValueError(
                f"{sum(self.coeff_bits)} bits of coefficient modulus at N = "
                f"{self.poly_modulus_degree} are weaker than {SECURITY} bits of security: at most "
                f"{limit} (homomorphic encryption standard); use fewer primes or a larger N"
            )

    @property
    def slots(self) -> int:
        """Numbers in a ciphertext."""
        return self.poly_modulus_degree // 2

    @property
    def id(self) -> str:
        """Equal for equal parameters only."""
        text = json.dumps([self.poly_modulus_degree, list(self.coeff_bits), self.scale_bits])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def context(self):
        """SEAL's context, which checks the security by its own table again, and the primes."""
        found = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        found.set_poly_modulus_degree(self.poly_modulus_degree)
        found.set_coeff_modulus(
            sealapi.CoeffModulus.Create(self.poly_modulus_degree, list(self.coeff_bits))
        )
        context = sealapi.SEALContext(found, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not context.parameters_set():
            raise ValueError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
        return context, [prime.value() for prime in found.coeff_modulus()]


class Files:
    """SEAL's objects to bytes and back, by way of one file in a folder of its own."""

    def __init__(self):
        memory = "/dev/shm"  # Linux keeps files there in memory
        folder = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
        self._path = Path(folder) / "object"
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def save(self, item) -> bytes:
        """As SEAL writes it, compressed."""
        item.save(str(self._path))
        return self._path.read_bytes()

    def save_plain(self, item) -> bytes:
        """Without compression, which takes longer to undo than what is saved takes to send."""
        raw = self.save(item)
        body = zstandard.ZstdDecompressor().decompressobj().decompress(raw[16:])
        return raw[:5] + b"\0" + raw[6:8] + (16 + len(body)).to_bytes(8, "little") + body

    def load(self, item, context, data):
        """The item, filled from bytes that SEAL checks against the context."""
        self._path.write_bytes(data)
        item.load(context, str(self._path))
        return item


def fresh(files: Files, context, data: bytes, parameters: Parameters):
    """SEAL's ciphertext of a stranger's bytes.

    Raises:
        ValueError: SEAL refuses them, or they are of no ciphertext as clients make them: of two
            polynomials, of all primes, at the parameters' scale.
    """
    found = files.load(sealapi.Ciphertext(context), context, data)
    about = found.size(), found.scale, found.is_ntt_form(), found.parms_id()
    if about != (2, 2.0**parameters.scale_bits, True, context.first_parms_id()):
        raise ValueError("a ciphertext is not freshly encrypted under the offer's parameters")
    return found


class Secret:
    """A fresh secret key, and what encrypts and decrypts under it.

    Args:
        parameters: of the encryption.
    """

    def __init__(self, parameters: Parameters):
        self.parameters, self.files = parameters, Files()
        self.context, self.primes = parameters.context()
        self.generator = sealapi.KeyGenerator(self.context)
        secret = self.generator.secret_key()
        self._encryptor = sealapi.Encryptor(self.context, secret)
        self._decryptor = sealapi.Decryptor(self.context, secret)
        self._encoder = sealapi.CKKSEncoder(self.context)

    def encode(self, values: np.ndarray):
        """SEAL's plaintext of up to N / 2 real or complex numbers."""
        plain = sealapi.Plaintext()
        self._encoder.encode(values.tolist(), 2.0**self.parameters.scale_bits, plain)
        return plain

    def encrypt_slots(self, values: np.ndarray):
        """SEAL's ciphertext of up to N / 2 real or complex numbers."""
        cipher = sealapi.Ciphertext(self.context)
        self._encryptor.encrypt_symmetric(self.encode(values), cipher)
        return cipher

    def decrypt_slots(self, data: bytes) -> np.ndarray:
        """(N / 2,) complex numbers of a ciphertext's bytes; where they are real, noise is not."""
        cipher, plain = sealapi.Ciphertext(self.context), sealapi.Plaintext()
        self._decryptor.decrypt(self.files.load(cipher, self.context, data), plain)
        return np.array(self._encoder.decode_complex(plain))


@cache
def version() -> str:
    """The SEAL that runs here, as it signs what it saves: the byte layout is bound to it."""
    header = Files().save(sealapi.Plaintext())
    return f"SEAL {header[3]}.{header[4]}, TenSEAL {tenseal.__version__}"
