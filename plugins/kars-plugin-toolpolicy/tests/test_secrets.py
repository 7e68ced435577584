"""What is found and what is not, kind by kind. No secret here is one."""

from __future__ import annotations

import json
import time

import pytest
from kars_plugin_toolpolicy.secrets import SHAPES, fold, hide
from kars_plugin_toolpolicy.sightings import Sightings

from kars_router.config.toolpolicy import SecretKind

ALNUM = "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xYzAbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
HEX = "9944b09199c62bcf9418ad846dd0e4bbdfc6ee4b"
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0."
    "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)

# In two pieces, so that nobody takes it for one.
KEY = "PRIVATE KEY"
KEY_BEGINS = f"-----BEGIN {KEY}-----"
PEM = "-----BEGIN {0}-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw\nggSjAgEAAoIB\n-----END {0}-----"
K = SecretKind

# kind, text, what is left of it
FOUND = [
    (K.BEARER, f"Authorization: Bearer {ALNUM[:32]}", "Authorization: Bearer *"),
    (K.BEARER, f"curl -H 'authorization: bearer {HEX}'", "curl -H 'authorization: bearer *'"),
    (K.BEARER, "Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic *"),
    (K.BEARER, f"Authorization: Token {HEX}", "Authorization: Token *"),
    (K.BEARER, f'{{"Authorization": "Bearer {HEX}"}}', '{"Authorization": "Bearer *"}'),
    (K.JWT, f"token {JWT}.", "token *."),
    (K.JWT, f"?state%3D{JWT}&x", "?state%3D*&x"),
    (K.JWT, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", "*"),
    (
        K.JWT,
        f"eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0..{ALNUM[:16]}.{ALNUM[:40]}.{ALNUM[:22]}",
        "*",
    ),
    (K.AWS, "id AKIAIOSFODNN7EXAMPLE", "id *"),
    (K.AWS, "AWS_ACCESS_KEY_ID=ASIAIOSFODNN7EXAMPLE", "AWS_ACCESS_KEY_ID=*"),
    (
        K.AWS,
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "aws_secret_access_key = *",
    ),
    (K.AWS, f'"SecretAccessKey" : "{ALNUM[:40]}"', '"SecretAccessKey" : "*"'),
    (K.AWS, f"aws_session_token={ALNUM + ALNUM}", "aws_session_token=*"),
    (
        K.AZURE,
        f"AccountName=a;AccountKey={ALNUM}{ALNUM[:17]}==;EndpointSuffix=b",
        "AccountName=a;AccountKey=*;EndpointSuffix=b",
    ),
    (K.AZURE, f"SharedAccessKey={ALNUM[:43]}=", "SharedAccessKey=*"),
    (
        K.AZURE,
        f"https://a.blob.core.windows.net/b?sv=2024&sig={ALNUM[:40]}%2Fab%3D&se=1",
        "https://a.blob.core.windows.net/b?sv=2024&sig=*&se=1",
    ),
    (K.AZURE, f"secret aB38Q~{ALNUM[:34]} end", "secret * end"),
    (K.AZURE, f"key {ALNUM[:52]}JQQJ99{ALNUM[:26]} end", "key * end"),
    *((K.GITHUB, f"x gh{kind}_{ALNUM[:36]}", "x *") for kind in "pousr"),
    (K.GITHUB, f"https://x/{'github_pat_' + ALNUM[:22]}_{ALNUM[:59]}", "https://x/*"),
    (K.GITHUB, f"a\\nghp_{ALNUM[:36]}", "a\\n*"),  # an escape that was escaped
    (K.GOOGLE, f"key=AIza{ALNUM[:35]}", "key=*"),
    (K.GOOGLE, f"ya29.{ALNUM[:40]}", "*"),
    (K.GOOGLE, f"GOCSPX-{ALNUM[:28]}", "*"),
    (K.GOOGLE, f"refresh 1//0{ALNUM[:50]}", "refresh *"),
    (K.SLACK, f"xoxb-123456789012-123456789012-{ALNUM[:24]}", "*"),
    (K.SLACK, "xapp-1-A0123456789-1234567890123-" + HEX, "*"),
    (
        K.SLACK,
        f"https://hooks.slack.com/services/T0123/B0123/{ALNUM[:24]}",
        "https://hooks.slack.com/*",
    ),
    (K.OPENAI, f"sk-{ALNUM[:48]}", "*"),
    (K.OPENAI, f"OPENAI_API_KEY=sk-proj-{ALNUM[:30]}_{ALNUM[:30]}", "OPENAI_API_KEY=*"),
    (K.OPENAI, f"sk-ant-api03-{ALNUM}-AA", "*"),
    (K.PRIVATE_KEY, f"a {PEM.format('PRIVATE KEY')} b", "a * b"),
    (K.PRIVATE_KEY, PEM.format("RSA PRIVATE KEY"), "*"),
    (K.PRIVATE_KEY, PEM.format("OPENSSH PRIVATE KEY"), "*"),
    (K.PRIVATE_KEY, PEM.format("PGP PRIVATE KEY BLOCK"), "*"),
    (K.PRIVATE_KEY, PEM.format("PRIVATE KEY").replace("\n", "\\n"), "*"),
    (K.PRIVATE_KEY, PEM.format("PRIVATE KEY")[:60] + " (cut off)", "*(cut off)"),
    (K.PASSWORD, "password=hunter", "password=*"),
    (K.PASSWORD, "Password: hunter2", "Password: *"),
    (K.PASSWORD, '{"password":"correct horse battery"}', '{"password":"*"}'),
    (K.PASSWORD, "{'passwd': 'it\"s me'}", "{'passwd': '*'}"),
    (K.PASSWORD, '{\\"password\\":\\"hunter\\"}', '{\\"password\\":\\"*\\"}'),
    (K.PASSWORD, "DB_PASSWORD=s3cret!;x", "DB_PASSWORD=*;x"),
    (K.PASSWORD, '- textbox "Password" [ref=e12]: hunter2', '- textbox "Password" [ref=e12]: *'),
    (K.PASSWORD, "a?client_secret=abcdef&b=c", "a?client_secret=*&b=c"),
    (K.PASSWORD, "api_key: 'abcdefgh'", "api_key: '*'"),
    (K.PASSWORD, "X-Api-Key: abc123def", "X-Api-Key: *"),
    (K.PASSWORD, "access_token=abcdef", "access_token=*"),
    (K.PASSWORD, "mysql --password hunter2", "mysql --password *"),
    (K.PASSWORD, "login --auth-token abc123", "login --auth-token *"),
    (K.PASSWORD, "<password>hunter</password>", "<password>*</password>"),
    (K.PASSWORD, "passphrase => 'abcd'", "passphrase => '*'"),
    (K.PASSWORD, "Pwd=abc1;", "Pwd=*;"),
    (K.URL_CREDENTIALS, "postgres://me:hunter2@db:5432/x", "postgres://*@db:5432/x"),
    (K.URL_CREDENTIALS, "https://:tok@example.com", "https://*@example.com"),
    (K.URL_CREDENTIALS, "https:\\/\\/u:p@h", "https://*@h"),
]

LEFT_ALONE = [
    (K.BEARER, "use bearer authentication with a token"),
    (K.BEARER, "Bearer <token>"),
    (K.BEARER, "Bearer $TOKEN and Bearer ${TOKEN_2_LONG_ENOUGH}"),
    (K.BEARER, "WWW-Authenticate: Bearer realm=example, error=invalid_token"),
    (K.BEARER, "Authorization: required"),
    (K.BEARER, "Basic authentication, basic understanding, Basic information"),
    (K.BEARER, "forbearers of 1234567890123456"),
    (K.JWT, "eyJhbGciOiJIUzI1NiJ9 alone"),
    (K.JWT, "keyJhbGciOi.eyJzdWIiOi.x"),
    (K.JWT, "eyJa.b.c"),
    (K.AWS, "AKIAIOSFODNN7EXAMPLEAKIAIOSFODNN7"),
    (K.AWS, "ASIAN-PACIFIC AKIAK ACCACCESSIBILITYSTATEMENT1"),
    (K.AWS, "secret_access_key: see the vault"),
    (K.AZURE, "AccountKey=<key>; SharedAccessKey=..."),
    (K.AZURE, f"design={ALNUM}"),
    (K.AZURE, "&sig=short"),
    (K.AZURE, "FAQ~s and 8Q~ and IQ~tests"),
    (K.GITHUB, "ghp_short high_priority_queue_that_is_long_enough_to_be_it_1234567"),
    (K.GITHUB, f"laugh{'s_' + ALNUM[:40]}"),
    (K.GITHUB, "github_pattern_matching_library_with_a_long_name_indeed_so_long"),
    (K.GOOGLE, f"AIza{ALNUM[:20]}"),
    (K.GOOGLE, f"AIza{ALNUM[:50]}"),
    (K.GOOGLE, "https://example.com/1//0abc"),
    (K.SLACK, "xoxo-hugs-and-kisses-from-all-of-us"),
    (K.SLACK, "boxox-1234567890-1234567890"),
    (K.OPENAI, "sk-spinner-circle-fade-dot-animation-container-2"),
    (K.OPENAI, "disk-A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6"),
    (K.OPENAI, "task-runner-A1b2C3d4E5f6G7h8I9j0K1l2M3n4"),
    (K.PRIVATE_KEY, PEM.format("CERTIFICATE")),
    (K.PRIVATE_KEY, PEM.format("PUBLIC KEY")),
    (K.PRIVATE_KEY, "it begins with BEGIN PRIVATE KEY"),
    (K.PASSWORD, "Password: must be at least 8 characters"),
    (K.PASSWORD, "Password: required"),
    (K.PASSWORD, "password: string; password=password; pwd=null"),
    (K.PASSWORD, "password=$PASSWORD password=${PW} password=<your password> password={{ pw }}"),
    (K.PASSWORD, "password = getpass.getpass()"),
    (K.PASSWORD, "password=os.environ['PASSWORD']"),
    (K.PASSWORD, "password=********"),
    (K.PASSWORD, "pwd=/home/user/project PWD=/srv"),
    (K.PASSWORD, 'textbox "Password" [ref=e12]'),
    (K.PASSWORD, '"required":["username","password"]'),
    (K.PASSWORD, '"password":{"type":"string"}'),
    (K.PASSWORD, "nextPageToken: abc123def456, page_token=abc123def456"),
    (K.PASSWORD, "tokens: 1234567, max_tokens=1234567"),
    (K.PASSWORD, "the --password option is for 2fa"),
    (K.PASSWORD, "secretName: my-tls-1, token_type: bearer1"),
    (K.PASSWORD, "password=[redacted:password]"),
    (K.PASSWORD, "forgot your password? 12345678"),
    (K.URL_CREDENTIALS, "http://localhost:8080/@scope/package"),
    (K.URL_CREDENTIALS, "https://git@github.com:22/x"),
    (K.URL_CREDENTIALS, "https://example.com?next=a:b@c"),
    (K.URL_CREDENTIALS, "https://${USER}:${PASS}@host http://u:$PASS@host http://u:***@host"),
    (K.URL_CREDENTIALS, "mail me@example.com: https://example.com"),
]


@pytest.mark.parametrize(("kind", "text", "left"), FOUND)
def test_secrets_are_found(kind: SecretKind, text: str, left: str) -> None:
    assert hide(text, [kind]) == left.replace("*", f"[redacted:{kind.value}]", 1)


@pytest.mark.parametrize(("kind", "text", "left"), FOUND)
def test_what_is_found_has_a_sighting_in_the_json_text(
    kind: SecretKind, text: str, left: str
) -> None:
    sightings = Sightings.of(frozenset({kind}))
    for padding in ("", "x " * 400, "A" * 600 + " "):
        for ascii_only in (True, False):
            doc = json.dumps({"text": padding + "é " + text}, ensure_ascii=ascii_only).encode()
            start = doc.index(b":")
            assert any(place >= start for place in sightings.within(doc))


@pytest.mark.parametrize(("kind", "text", "left"), FOUND)
def test_what_stands_right_behind_a_long_run_is_sighted(
    kind: SecretKind, text: str, left: str
) -> None:
    behind = "A" * 600 + "/" + text
    found = hide(behind, [kind]) is not behind
    assert bool(Sightings.of(frozenset({kind})).within(behind.encode())) >= found


@pytest.mark.parametrize(("kind", "text"), LEFT_ALONE)
def test_what_only_looks_like_a_secret_stays(kind: SecretKind, text: str) -> None:
    assert hide(text, [kind]) is text


@pytest.mark.parametrize(("kind", "text", "left"), FOUND)
def test_what_was_hidden_is_not_hidden_again(kind: SecretKind, text: str, left: str) -> None:
    hidden = hide(text, SecretKind)
    assert hide(hidden, SecretKind) == hidden


def test_each_kind_is_found_only_when_it_is_asked_for() -> None:
    for kind, text, _ in FOUND:
        assert hide(text, ()) is text
        assert f"[redacted:{kind.value}]" in hide(text, [kind])


def test_every_kind_has_a_shape_and_rows_of_both_sorts() -> None:
    assert {shape.kind for shape in SHAPES} == set(SecretKind)
    assert {kind for kind, *_ in FOUND} == set(SecretKind)
    assert {kind for kind, _ in LEFT_ALONE} == set(SecretKind)


def test_folding_moves_no_character() -> None:
    every = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    assert len(fold(every)) == len(every)
    assert hide("İİİ password=hunter", [SecretKind.PASSWORD]) == (
        "İİİ password=[redacted:password]"
    )


@pytest.mark.parametrize(
    "unit",
    [
        f"{KEY_BEGINS}(",
        KEY_BEGINS,
        "eyJ",
        "eyJeyJeyJeyJ.",
        "bearer ",
        "Authorization: ",
        "password: ",
        'password"[a] [b] [c] = "',
        "://a",
        "://:",
        "sk-A1",
        "sk-",
        "xoxb-",
        "1//0",
        "secret_access_key=",
        "sig=",
        "8Q~",
        "JQQJ99",
        "\\/",
        "\\u0041",
    ],
)
def test_no_text_takes_long(unit: str) -> None:
    def once(text: str) -> float:
        begun = time.thread_time()
        hide(text, SecretKind)
        Sightings.of(frozenset(SecretKind)).within(text.encode())
        return time.thread_time() - begun

    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        return min(once(text) for _ in range(3))  # what disturbs only ever adds

    # Eight times the text takes some eight times as long; a square would be sixty-four.
    assert seconds(1 << 18) < 0.05 + 25 * seconds(1 << 15)
