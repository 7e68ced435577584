"""Which JWTs are good."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import sys
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from unit.front.auth_kit import AUDIENCE, ISSUER, SUBJECT, Signer, jwks, new_key

from kars_router.config.auth import Jwt
from kars_router.front.bearer import BadTokenError, UncheckableError
from kars_router.front.files import WatchedFile
from kars_router.front.jwks import ALGORITHMS, KeySet, parse
from kars_router.front.keysource import FileKeys
from kars_router.front.principal import NOBODY, Principal
from kars_router.front.tokens import JwtVerifier

NOW = 1_000_000
SETTINGS = Jwt(issuer=ISSUER, audience=("other", AUDIENCE), leeway=60.0)
SIGNER = Signer()


class Fixed:
    """Keys that are there."""

    def __init__(self, keys: KeySet) -> None:
        self.keys = keys

    async def find(self, kid: str, algorithm: str) -> Any:
        return self.keys.find(kid, algorithm)

    async def run(self) -> None:
        raise AssertionError("nothing to do")


def verifier(*signers: Signer, settings: Jwt = SETTINGS) -> JwtVerifier:
    keys = Fixed(parse(jwks(*(signers or (SIGNER,)))))
    return JwtVerifier(settings, keys, clock=lambda: float(NOW))


def token(signer: Signer = SIGNER, header: Any = None, **claims: Any) -> str:
    return signer.token(header, **({"iat": NOW, "exp": NOW + 600} | claims))


async def refused(text: str, *signers: Signer) -> str:
    with pytest.raises(BadTokenError) as caught:
        await verifier(*signers).verify(text)
    for part in text.split("."):
        assert len(part) < 9 or part not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_each_algorithm_of_the_list(algorithm: str) -> None:
    signer = Signer(algorithm=algorithm)
    found = await verifier(signer).verify(token(signer))
    assert found == Principal(subject=SUBJECT, issuer=ISSUER)
    other = Signer(algorithm=algorithm)
    assert await refused(token(other), signer) == "the signature or the form of the token is wrong"


def _forged(algorithm: str, key: bytes = b"", **header: Any) -> str:
    """A token of an algorithm that the library would not write, signed with a shared secret."""
    parts = [
        {"alg": algorithm, "kid": "one", **header},
        {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "exp": NOW + 60},
    ]
    body = b".".join(base64.urlsafe_b64encode(msgspec.json.encode(p)).rstrip(b"=") for p in parts)
    signature = hmac.new(key, body, hashlib.sha256).digest() if key else b""
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "", "HS256", "HS512", "ES512", "RS384", "x"])
async def test_no_other_algorithm(algorithm: str) -> None:
    public = SIGNER.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for key in (b"", public, jwks(SIGNER)):
        reason = await refused(_forged(algorithm, key))
        assert reason == "the token is not signed by an algorithm that is taken here"


async def test_the_key_says_what_it_is_for_and_not_the_token() -> None:
    rsa = Signer(algorithm="RS256")
    pss = Signer(algorithm="PS256", key=rsa.key)
    keys = KeySet(parse(msgspec.json.encode({"keys": [rsa.jwk(alg="RS256")]})).keys)
    assert keys.find("one", "RS256") is not None
    assert keys.find("one", "PS256") is None
    # Without an algorithm of its own an RSA key is for both.
    assert (await verifier(rsa).verify(token(pss))).subject == SUBJECT
    assert await refused(_forged("RS256"), SIGNER) == "the token is signed with an unknown key"


NEVER = object()
CLAIMS: list[tuple[dict[str, Any], str | None]] = [
    ({"exp": NOW - 59}, None),
    ({"exp": NOW - 60}, "the token has expired"),
    ({"exp": None}, "the token does not say when it expires"),
    ({"exp": "soon"}, "the token holds a time that is none"),
    ({"exp": True}, "the token holds a time that is none"),
    ({"exp": 10**400}, "the token holds a time that is none"),
    ({"exp": -(10**400)}, "the token holds a time that is none"),
    ({"nbf": 10**400}, "the token holds a time that is none"),
    ({"nbf": NOW + 60}, None),
    ({"nbf": NOW + 61}, "the token is not valid yet"),
    ({"nbf": []}, "the token holds a time that is none"),
    ({"iat": NOW + 60}, None),
    ({"iat": NOW + 61}, "the token is not valid yet"),
    ({"iat": None}, None),
    ({"iss": ISSUER + "/"}, "the token is of another issuer"),
    ({"iss": ISSUER.upper()}, "the token is of another issuer"),
    ({"iss": None}, "the token is of another issuer"),
    ({"iss": [ISSUER]}, "the token is of another issuer"),
    ({"aud": [AUDIENCE, "x"]}, None),
    ({"aud": "other"}, None),
    ({"aud": ["x"]}, "the token is for another audience"),
    ({"aud": []}, "the token is for another audience"),
    ({"aud": None}, "the token is for another audience"),
    ({"aud": {AUDIENCE: 1}}, "the token is for another audience"),
    ({"aud": AUDIENCE + "/"}, "the token is for another audience"),
    ({"aud": AUDIENCE[:-1]}, "the token is for another audience"),
    ({"sub": None}, "the token names no subject"),
    ({"sub": ""}, "the token names no subject"),
    ({"sub": 7}, "the token names no subject"),
    ({"sub": "a" * 256}, "the token names no subject"),
    ({"sub": "a\nb"}, "the token names no subject"),
    ({"scope": 7}, "the token holds scopes that are none"),
    ({"scp": [7]}, "the token holds scopes that are none"),
    ({"scope": " ".join(map(str, range(300)))}, "the token holds too many scopes"),
]


@pytest.mark.parametrize(("claims", "reason"), CLAIMS, ids=[str(c)[:40] for c, _ in CLAIMS])
async def test_claims(claims: dict[str, Any], reason: str | None) -> None:
    if reason is None:
        assert (await verifier().verify(token(**claims))).subject == SUBJECT
    else:
        assert await refused(token(**claims)) == reason


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, ()),
        ({"scope": "a b"}, ("a", "b")),
        ({"scope": " a  b a"}, ("a", "b")),
        ({"scp": ["a", "b"]}, ("a", "b")),
        ({"scp": "a b"}, ("a", "b")),
        ({"scope": "a", "scp": ["b"]}, ("a",)),
        ({"scope": ""}, ()),
    ],
)
async def test_scopes(claims: dict[str, Any], scopes: tuple[str, ...]) -> None:
    assert (await verifier().verify(token(**claims))).scopes == scopes


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "AT+JWT", "application/at+jwt"])
async def test_types_of_access_tokens(typ: str) -> None:
    assert (await verifier().verify(token(header={"typ": typ}))).subject == SUBJECT


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", "secevent+jwt", "", 7])
async def test_tokens_for_other_uses(typ: Any) -> None:
    if isinstance(typ, str):
        text = token(header={"typ": typ} if typ else {"typ": "x"})
    else:
        text = _forged("ES256", typ=typ)
    assert await refused(text) == "the token is not an access token"


@pytest.mark.parametrize(
    "header",
    [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": False}, {"kid": 7}, {"crit": []}],
)
async def test_headers_that_must_be_understood(header: dict[str, Any]) -> None:
    text = _with_header(token(), header)
    assert await refused(text) in (
        "the token is not a signed JWT",
        "the signature or the form of the token is wrong",
    )


def _with_header(text: str, more: dict[str, Any]) -> str:
    """The same claims under another header, signed anew."""
    _, claims, _ = text.split(".")
    whole = {"alg": "ES256", "kid": "one", **more}
    head = base64.urlsafe_b64encode(msgspec.json.encode(whole)).rstrip(b"=")
    body = head + b"." + claims.encode()
    signature = jwt.get_algorithm_by_name("ES256").sign(body, SIGNER.key)
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.parametrize(
    "text", ["", "a", "a.b", "a.b.c", "a.b.c.d.e", "é.b.c", "..", "W10.W10.W10"]
)
async def test_what_is_no_jwt(text: str) -> None:
    assert await refused(text) in (
        "the token is not a signed JWT",
        "the token is not signed by an algorithm that is taken here",
    )


@given(st.data())
def test_a_changed_token_is_no_good_and_no_crash(data: st.DataObject) -> None:
    good = token()
    place = data.draw(st.integers(0, len(good) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_.="))
    changed = good[:place] + letter + good[place + 1 :]

    async def check() -> None:
        try:
            found = await verifier().verify(changed)
        except BadTokenError:
            return
        # Bits at the end of base64 that mean nothing.
        assert found.subject == SUBJECT

    trio.run(check)


class TestWhichKey:
    async def test_by_its_name(self) -> None:
        one, two = Signer("one"), Signer("two")
        assert (await verifier(one, two).verify(token(two))).subject == SUBJECT
        assert await refused(token(Signer("three")), one, two) == (
            "the token is signed with an unknown key"
        )

    async def test_the_only_one_needs_no_name(self) -> None:
        nameless = Signer(None)
        named = Signer("x", key=nameless.key)
        for signer in (nameless, named):
            assert (await verifier(nameless).verify(token(signer))).subject == SUBJECT
        assert (await verifier(named).verify(token(nameless))).subject == SUBJECT

    async def test_a_token_without_a_name_when_one_key_only_fits(self) -> None:
        other = Signer("b", algorithm="EdDSA")
        nameless = Signer(None)
        named = Signer("x", key=nameless.key)
        assert (await verifier(other, named).verify(token(nameless))).subject == SUBJECT
        reason = await refused(token(nameless), Signer("y"), named)
        assert reason == "the token is signed with an unknown key"

    async def test_a_name_that_others_have_is_not_good_for_a_nameless_one(self) -> None:
        nameless = Signer(None)
        reason = await refused(token(Signer("x", key=nameless.key)), nameless, Signer("one"))
        assert reason == "the token is signed with an unknown key"

    @pytest.mark.parametrize(
        "more",
        [
            {"use": "enc"},
            {"key_ops": ["sign"]},
            {"key_ops": "verify"},
            {"alg": "ES384"},
            {"alg": "HS256"},
            {"crv": "P-521"},
            {"kty": "oct", "k": "AAAA"},
            {"x": "AAAA"},
            {"x": 7},
            {"kid": 7},
        ],
    )
    def test_keys_that_are_left_out(self, more: dict[str, Any]) -> None:
        data = msgspec.json.encode({"keys": [SIGNER.jwk(**more), Signer("two").jwk()]})
        assert [key.kid for key in parse(data).keys] == ["two"]

    @pytest.mark.parametrize("more", [{"use": "sig"}, {"key_ops": ["verify"]}, {"alg": "ES256"}])
    def test_keys_that_say_more(self, more: dict[str, Any]) -> None:
        data = msgspec.json.encode({"keys": [SIGNER.jwk(**more)]})
        assert len(parse(data).keys) == 1

    def test_short_rsa_keys_are_left_out(self) -> None:
        short = Signer(algorithm="RS256", key=new_key("RS256", 1024))
        assert parse(jwks(short)).keys == ()

    def test_a_private_key_is_not_loaded(self) -> None:
        whole = jwt.get_algorithm_by_name("ES256").to_jwk(SIGNER.key, as_dict=True)
        assert "d" in whole
        found = parse(msgspec.json.encode({"keys": [{**whole, "key_ops": ["verify"]}]}))
        assert not hasattr(found.keys[0].value, "private_bytes")

    @pytest.mark.parametrize(
        "data", [b"", b"[]", b"{}", b'{"keys":{}}', b"\xff", b'{"keys":' + b"[" * 100_000]
    )
    def test_what_is_no_key_set(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="is no JSON object with a list of keys"):
            parse(data)

    def test_too_many(self) -> None:
        with pytest.raises(ValueError, match="holds more than 256 keys"):
            parse(msgspec.json.encode({"keys": [{}] * 257}))

    def test_an_empty_set_takes_nobody(self) -> None:
        assert parse(b'{"keys":[]}').find("", "ES256") is None


class TestFile:
    async def test_read_again_when_it_changes(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        old, new = Signer("one"), Signer("one")
        file.write_bytes(jwks(old))
        keys = FileKeys(WatchedFile(file, 1 << 18))
        check = JwtVerifier(SETTINGS, keys, clock=lambda: float(NOW))
        assert (await check.verify(token(old))).subject == SUBJECT
        file.write_bytes(jwks(new))
        assert (await check.verify(token(new))).subject == SUBJECT
        with pytest.raises(BadTokenError):
            await check.verify(token(old))
        for broken in (b"no keys", b"{" + b" " * (1 << 18) + b"}"):
            file.write_bytes(broken)
            with pytest.raises(UncheckableError, match=str(file)):
                await check.verify(token(new))
        file.unlink()
        with pytest.raises(UncheckableError, match="No such file"):
            await check.verify(token(new))
        file.write_bytes(jwks(new))
        assert (await check.verify(token(new))).subject == SUBJECT


def test_a_file_that_is_too_large_is_not_cut_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcd")
    assert WatchedFile(tmp_path / "file", 4).read() == b"abcd"
    with pytest.raises(ValueError, match="is larger than 3 bytes"):
        WatchedFile(tmp_path / "file", 3).read()


def test_two_issuers_have_two_people_of_the_same_name() -> None:
    one = Principal(subject="a", issuer="https://one.example")
    two = Principal(subject="a", issuer="https://two.example")
    assert one.owner != two.owner
    assert one.identity != two.identity
    assert one.owner == Principal(subject="a", issuer=one.issuer, scopes=("x",)).owner
    assert len(one.owner) == 32
    assert (NOBODY.owner, NOBODY.identity) == ("", "")


def test_without_jwt_its_library_is_not_loaded() -> None:
    code = "import sys, kars_router.service, kars_router.front.auth;sys.exit('jwt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
