"""Who may come in: content policy, login wall, exact origin, and patience with wrong passwords."""

from localllm.gateway.security.csp import ContentSecurityPolicyMiddleware, csp_nonce
from localllm.gateway.security.first_run import LoginRequiredMiddleware
from localllm.gateway.security.origin import HttpsProxy, OriginGuard
from localllm.gateway.security.throttle import LoginThrottle

__all__ = [
    "ContentSecurityPolicyMiddleware",
    "HttpsProxy",
    "LoginRequiredMiddleware",
    "LoginThrottle",
    "OriginGuard",
    "csp_nonce",
]
