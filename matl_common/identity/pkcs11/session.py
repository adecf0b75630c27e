"""One object in a PKCS#11 token, and the session it is used through.

The session is opened when it is first needed and anew after it was lost, with the PIN read again
each time. A PIN that was refused is not tried twice: tokens lock themselves. The PIN appears in
no message. A module that was initialised does not survive a fork; nothing here forks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from matl_common.errors import ConfigurationError, MatlError
from matl_common.identity.pkcs11.uri import PIN_VARIABLE, ObjectType, TokenUri

if TYPE_CHECKING:
    from pkcs11 import Object, ObjectClass, Session, Token

T = TypeVar("T")

MAX_PIN_BYTES = 255


class TokenError(MatlError):
    """A token cannot be reached, or did not do what was asked. Another attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An object, and the session that knows it."""

    session: Session
    object: Object


class _Module:
    """A vendor's library, loaded once in a process."""

    def __init__(self, path: Path) -> None:
        import pkcs11

        try:
            self.library = pkcs11.lib(str(path))
        except pkcs11.PKCS11Error as error:
            # A subclass stands for a code of the module's own: it was loaded.
            if type(error) is not pkcs11.PKCS11Error:
                raise ConfigurationError(
                    f"the PKCS#11 module {path} does not start ({type(error).__name__}); see that "
                    "what its own configuration names is there, as the folder of SoftHSM's tokens "
                    "(directories.tokendir in softhsm2.conf)"
                ) from error
            raise ConfigurationError(
                f"cannot load the PKCS#11 module {path}; see that it is installed, and name it "
                "with module-path"
            ) from error
        # Sessions of an earlier generation are gone.
        self.generation = 0

    def restart(self) -> None:
        """Initialise the library anew: many find a token that was away only then."""
        self.generation += 1
        if self.library.initialized:
            self.library.finalize()
        self.library.initialize()


# Modules are initialised without promises about threads (CK_C_INITIALIZE_ARGS), and a login
# counts for the whole process: all calls of this process take turns.
_TURN: Final = Lock()
_MODULES: Final[dict[Path, _Module]] = {}
# By module, token and hash: tokens count what all objects of this process try together.
_REFUSED_PINS: Final[set[tuple[Path, bytes, bytes]]] = set()


class TokenObject:
    """What a URI names in its token. Any thread may use it."""

    def __init__(
        self,
        uri: TokenUri,
        *,
        type: ObjectType,
        check: Callable[[Opened], None],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Name the object; nothing is opened yet.

        Args:
            uri: names it.
            type: what it must be.
            check: called with the object whenever it was opened; what it raises ends the attempt.
            environment: where the PIN is if the URI names no file.

        Raises:
            ConfigurationError: the URI names an object of another type.
        """
        if uri.type not in {None, type}:
            raise ConfigurationError(f"{uri} names no {type}; leave out type")
        self._uri = uri
        self._type = type
        self._check = check
        self._environment = environment
        # Guarded by _TURN, like everything below it.
        self._held: tuple[int, Opened] | None = None

    def use(self, work: Callable[[Opened], T]) -> T:
        """Do something with the object; opens a session where there is none.

        ``work`` is called a second time where the first failed, with a new session.

        Raises:
            ConfigurationError: the module, the PIN or the object is not as configured.
            TokenError: the token cannot be reached, or refuses.
        """
        return self._attempt(lambda module: work(self._opened(module)))

    def create(self, make: Callable[[Session], None]) -> None:
        """Make the object, which must not be there yet.

        Raises:
            ConfigurationError: as ``use``, or there is one.
            TokenError: the token cannot be reached, or refuses.
        """

        def work(module: _Module) -> None:
            with self._logged_in(self._token(module), writing=True) as session:
                if self._matching(session):
                    raise ConfigurationError(
                        f"{self._uri} is there already; a key that may be in use is never replaced"
                    )
                make(session)

        self._attempt(work)

    def _attempt(self, work: Callable[[_Module], T]) -> T:
        pkcs11 = _library()
        with _TURN:
            if self._uri.module not in _MODULES:
                _MODULES[self._uri.module] = _Module(self._uri.module)
            module = _MODULES[self._uri.module]
            try:
                return work(module)
            except (TokenError, pkcs11.PKCS11Error):
                self._held = None
            try:
                module.restart()
                return work(module)
            except pkcs11.PKCS11Error as error:
                self._held = None
                raise TokenError(
                    f"the token of {self._uri} failed ({type(error).__name__}); see that it is "
                    "there, and what its own log says"
                ) from error

    def _opened(self, module: _Module) -> Opened:
        if self._held is not None and self._held[0] == module.generation:
            return self._held[1]
        session = self._logged_in(self._token(module), writing=False)
        try:
            opened = Opened(session, self._only_match(session))
            self._check(opened)
        except BaseException:
            # What went wrong is told, and not that a session could not be ended after it.
            with suppress(_library().PKCS11Error):
                session.close()
            raise
        self._held = (module.generation, opened)
        return opened

    def _only_match(self, session: Session) -> Object:
        match self._matching(session):
            case [found]:
                return found
            case []:
                raise ConfigurationError(
                    f"there is no {self._type} for {self._uri} in its token; correct object or id"
                )
            case several:
                raise ConfigurationError(
                    f"{len(several)} objects in its token fit {self._uri}; add id to name one"
                )

    def _token(self, module: _Module) -> Token:
        tokens = list(_tokens(module))
        fitting = [token for token in tokens if _fits(token, self._uri)]
        match fitting:
            case [token]:
                return token
            case []:
                seen = ", ".join(repr(each.label) for each in tokens if each.label) or "none"
                raise TokenError(
                    f"the token of {self._uri} is not there; connect it, or correct token and "
                    f"serial (tokens that answer: {seen})"
                )
        serials = ", ".join(each.serial.decode(errors="replace") for each in fitting)
        raise ConfigurationError(f"{len(fitting)} tokens fit {self._uri}; add serial ({serials})")

    def _logged_in(self, token: Token, *, writing: bool) -> Session:
        pkcs11 = _library()
        pin = self._pin()
        tried = (self._uri.module, token.serial, hashlib.sha256(pin.encode()).digest())
        if tried in _REFUSED_PINS:
            raise ConfigurationError(
                f"the PIN for {self._uri} was refused before and is not tried again, since tokens "
                "lock themselves; correct it"
            )
        try:
            return token.open(rw=writing, user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:
            # Another object's session has: a login counts for the whole process.
            return token.open(rw=writing)
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
            _REFUSED_PINS.add(tried)
            raise ConfigurationError(
                f"the token of {self._uri} refuses the PIN; correct it before you try again, since "
                "tokens lock themselves after a few attempts"
            ) from None
        except (pkcs11.PinLocked, pkcs11.PinExpired, pkcs11.UserPinNotInitialized) as error:
            raise ConfigurationError(
                f"the token of {self._uri} takes no PIN ({type(error).__name__}); have its "
                "security officer set one"
            ) from None

    def _pin(self) -> str:
        source = self._uri.pin_source
        if source is None:
            pin = self._environment.get(PIN_VARIABLE, "").encode(errors="surrogateescape")
        else:
            try:
                with source.open("rb") as file:
                    pin = file.read(MAX_PIN_BYTES + 2).rstrip(b"\r\n")
            except OSError as error:
                raise ConfigurationError(
                    f"cannot read the PIN from {source}: {error.strerror}; check the path and its "
                    "owner"
                ) from error
        try:
            if 0 < len(pin) <= MAX_PIN_BYTES:
                return pin.decode()
        except UnicodeDecodeError:
            pass
        where = source or f"the environment variable {PIN_VARIABLE}"
        raise ConfigurationError(
            f"there is no PIN in {where}; put it there, or name a file that holds it with "
            "pin-source in the PKCS#11 URI"
        )

    def _matching(self, session: Session) -> list[Object]:
        pkcs11 = _library()
        wanted: dict[Any, Any] = {pkcs11.Attribute.CLASS: _class(self._type)}
        if self._uri.label is not None:
            wanted[pkcs11.Attribute.LABEL] = self._uri.label
        if self._uri.id is not None:
            wanted[pkcs11.Attribute.ID] = self._uri.id
        return list(session.get_objects(wanted))


def _library() -> Any:
    try:
        import pkcs11
    except ImportError as error:
        raise ConfigurationError(
            "keys in a PKCS#11 token need python-pkcs11; run: pip install 'matl[hsm]'"
        ) from error
    return pkcs11


def _tokens(module: _Module) -> Iterator[Token]:
    """The tokens that answer; one that does not is no reason to miss another."""
    pkcs11 = _library()
    for slot in module.library.get_slots(token_present=True):
        try:
            yield slot.get_token()
        except pkcs11.PKCS11Error:
            continue


def _fits(token: Token, uri: TokenUri) -> bool:
    return (
        uri.token in {None, token.label}
        and uri.manufacturer in {None, token.manufacturer_id}
        and uri.model in {None, token.model}
        and (uri.serial is None or uri.serial.encode() == token.serial)
        and uri.slot_id in {None, token.slot.slot_id}
    )


def _class(type: ObjectType) -> ObjectClass:
    from pkcs11 import ObjectClass

    return {
        ObjectType.CERTIFICATE: ObjectClass.CERTIFICATE,
        ObjectType.DATA: ObjectClass.DATA,
        ObjectType.PRIVATE_KEY: ObjectClass.PRIVATE_KEY,
        ObjectType.PUBLIC_KEY: ObjectClass.PUBLIC_KEY,
        ObjectType.SECRET_KEY: ObjectClass.SECRET_KEY,
    }[type]
