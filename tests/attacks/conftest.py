"""What the attack tests share with the integration tests: launchers of real services, and a client."""

from __future__ import annotations

from tests.integration.conftest import client, launch, shared

__all__ = ["client", "launch", "shared"]
