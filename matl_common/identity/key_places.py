"""Where a key-encryption key is: in a file, or in a PKCS#11 token."""

from pathlib import Path

from matl_common.identity.pkcs11.uri import TokenUri, is_token_uri, parse_token_uri
from matl_common.identity.pkcs11.wrapping import TokenKeyEncryptionKey, create_token_key
from matl_common.identity.wrapping import KeyEncryptionKey, create_key_file, load_key_file

KeyPlace = Path | TokenUri


def parse_key_place(text: str) -> KeyPlace:
    """Parse a ``pkcs11:`` URI, or take the text as a path.

    Raises:
        ConfigurationError: it begins like a URI and is none that can be used.
    """
    return parse_token_uri(text) if is_token_uri(text) else Path(text)


def load_wrapping_key(place: KeyPlace) -> KeyEncryptionKey:
    """Load the key, or open its token.

    Raises:
        ConfigurationError: it is not there, or not as configured.
        TokenError: its token cannot be reached.
    """
    match place:
        case Path():
            return load_key_file(place)
        case TokenUri():
            return TokenKeyEncryptionKey(place)


def create_wrapping_key(place: KeyPlace) -> KeyEncryptionKey:
    """Make a key where there is none.

    Raises:
        ConfigurationError: there is one already, or it cannot be made there.
        TokenError: its token cannot be reached.
    """
    match place:
        case Path():
            create_key_file(place)
            return load_key_file(place)
        case TokenUri():
            return create_token_key(place)
