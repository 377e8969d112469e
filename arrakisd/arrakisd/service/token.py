"""The operations on tokens."""

from __future__ import annotations

from arrakis_rpc import daemon_api as api
from arrakis_rpc.errors import AccessDeniedError
from arrakis_rpc.guest_api import Nothing

from ..storage.tokens import TokenStore
from .call import Call


class TokenOperations:
    """``token.*``. Whoever has a token must not be able to make himself another one."""

    def __init__(self, tokens: TokenStore) -> None:
        self._tokens = tokens

    async def token_create(self, params: api.TokenName, call: Call) -> api.TokenCreated:
        """Make a token; its secret is told this once."""
        _demand_local(call)
        return api.TokenCreated(name=params.name, token=await self._tokens.create(params.name))

    async def token_list(self, _: Nothing, call: Call) -> api.TokenList:
        """List all tokens, without their secrets."""
        _demand_local(call)
        return api.TokenList(tokens=self._tokens.list())

    async def token_revoke(self, params: api.TokenName, call: Call) -> Nothing:
        """Let nobody in with a token any more."""
        _demand_local(call)
        await self._tokens.revoke(params.name)
        return Nothing()


def _demand_local(call: Call) -> None:
    if not call.is_local:
        raise AccessDeniedError(
            "tokens are managed through the daemon's Unix socket only",
            hint="run 'arrakis token' on the daemon's host, without ARRAKIS_URL",
        )
