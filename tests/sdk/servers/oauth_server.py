"""An authorization server on Authlib and Flask: client credentials and token exchange.

python oauth_server.py PORT

Opaque tokens for client credentials, JWTs for exchanges. Beside the standard endpoints there is
`/told`, with which a test looks behind the scenes and says how long tokens live.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from typing import Any, ClassVar

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # on loopback

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import BaseGrant, ClientMixin, TokenEndpointMixin
from authlib.oauth2.rfc6749.errors import InvalidGrantError, InvalidScopeError
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from flask import Flask, Response, jsonify, request
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

PORT = sys.argv[1]
ISSUER = f"http://127.0.0.1:{PORT}/realms/test"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
KEY = OctKey.import_key("k" * 32)
# Signs the tokens of workloads, as a cluster does those of service accounts.
WORKLOADS = OctKey.import_key("w" * 32)

app = Flask(__name__)
issued: dict[str, dict[str, Any]] = {}
requests: list[dict[str, Any]] = []
settings: dict[str, Any] = {"lifetime": 600, "dead": 0}


class Client(ClientMixin):
    def __init__(self, name: str, secret: str, method: str, grant: str) -> None:
        self.name, self.secret, self.method, self.grant = name, secret, method, grant

    def get_client_id(self) -> str:
        return self.name

    def check_client_secret(self, client_secret: str) -> bool:
        return secrets.compare_digest(self.secret, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == self.method

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == self.grant

    def get_allowed_scope(self, scope: str) -> str:
        return scope if set(scope.split()) <= {"mcp", "more"} else ""


CLIENTS = {
    "router": Client("router", "s3cret/with+signs", "client_secret_basic", "client_credentials"),
    "posting": Client("posting", "post-secret", "client_secret_post", "client_credentials"),
    "exchanger": Client("exchanger", "", "none", EXCHANGE),
}


class Credentials(ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = ["client_secret_basic", "client_secret_post"]

    def validate_token_request(self) -> None:
        super().validate_token_request()
        scope = request.form.get("scope", "")
        if scope and not self.request.client.get_allowed_scope(scope):
            raise InvalidScopeError


class TokenExchange(BaseGrant, TokenEndpointMixin):
    """RFC 8693, as much of it as there is a use for."""

    GRANT_TYPE = EXCHANGE
    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = ["none"]

    def validate_token_request(self) -> None:
        self.request.client = self.authenticate_token_endpoint_client()
        try:
            claims = jwt.decode(request.form["subject_token"], WORKLOADS, algorithms=["HS256"])
        except (JoseError, ValueError) as error:
            raise InvalidGrantError("the subject token is no good") from error
        kind = request.form.get("subject_token_type")
        if claims.claims["exp"] < time.time() or kind != "urn:ietf:params:oauth:token-type:jwt":
            raise InvalidGrantError("the subject token has expired or is of another type")
        self.request.user = claims.claims["sub"]

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        token = self.generate_token(
            user=self.request.user,
            scope=request.form.get("scope", ""),
            include_refresh_token=False,
        )
        self.save_token(token)
        kind = "urn:ietf:params:oauth:token-type:access_token"
        return 200, {**token, "issued_token_type": kind}, self.TOKEN_RESPONSE_HEADER


def make_token(client: Client, grant_type: str, user: str | None, scope: str | None) -> str:
    claims = {
        "iss": ISSUER,
        "sub": user or client.name,
        "client_id": client.name,
        "aud": request.form.get("resource"),
        "scope": scope or "",
        "exp": int(time.time() + settings["lifetime"]),
    }
    opaque = grant_type == "client_credentials"
    nonce = secrets.token_urlsafe(24)
    token = nonce if opaque else jwt.encode({"alg": "HS256"}, {**claims, "jti": nonce}, KEY)
    issued[token] = claims
    return token


server = AuthorizationServer(app, CLIENTS.get, lambda token, seen: None)
server.register_grant(Credentials)
server.register_grant(TokenExchange)
server.register_token_generator(
    "default", BearerTokenGenerator(make_token, None, lambda client, grant: settings["lifetime"])
)


@app.get("/.well-known/openid-configuration/realms/test")
def metadata() -> Response:
    return jsonify(issuer=ISSUER, token_endpoint=f"{ISSUER}/token", jwks_uri=f"{ISSUER}/jwks")


@app.post("/realms/test/token")
def token() -> Response:
    form = {name: request.form.get(name) for name in ("grant_type", "scope", "resource")}
    requests.append(form)
    response: Response = server.create_token_response()
    form["status"] = str(response.status_code)
    return response


@app.post("/introspect")
def introspect() -> Response:
    claims = issued.get(request.form["token"])
    active = claims is not None and claims["exp"] > time.time()
    settings["dead"] += not active
    return jsonify({"active": True, **claims} if active else {"active": False})


@app.post("/told")
def told() -> Response:
    said = request.get_json()
    if said.pop("revoke", False):
        for claims in issued.values():
            claims["exp"] = 0
    settings.update(said)
    return jsonify(requests=requests, tokens=list(issued), dead=settings["dead"])


app.run("127.0.0.1", int(PORT), threaded=True)
