"""What a name means in a cluster: which Service of which namespace, or none.

Owns the short forms of names, and which last labels are top-level domains. Must not know rules.

Source: Kubernetes "DNS for Services and Pods". A pod's resolver tries a name with less than five
dots in its own namespace, then among all Services, then in the cluster's domain, and then in the
world; what is true cannot be said without asking it.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from kars_router.egress.urls import InvalidUrlError, Target
from kars_router.egress.values import Place

_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")  # RFC 1123
_DOMAIN: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*\Z")
_KINDS: Final = {"svc": "Service and namespace", "pod": "pod and namespace"}

_COUNTRIES: Final = """
ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw
by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et
eu fi fj fk fm fo fr ga gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie
il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv
ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr
nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc sd se sg sh si sj sk
sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy
uz va vc ve vg vi vn vu wf ws ye yt za zm zw
"""
_GENERIC: Final = """
aero arpa asia biz cat com coop edu example gov info int jobs mil mobi museum name net org post pro
tel travel
"""
# Also what people call namespaces, so that only TLS, for which a Service would need a certificate,
# makes these the public ones.
_RECENT: Final = """
academy agency app bank blog build business care chat cloud codes community company computer
consulting data dev digital directory domains email engineering expert finance foundation fun fyi
games global group guru health help host hosting inc land legal life link live llc ltd market
marketing media money network news ninja one online page partners plus prod productions review
rocks run sale school science security services shop site social software solutions space store
studio support systems team tech technology today tools top town training video vip website wiki
work works world wtf xyz zone
"""
_TOP: Final = frozenset((_COUNTRIES + _GENERIC).split())
_TOP_OVER_TLS: Final = frozenset(_RECENT.split())


@frozen
class InCluster:
    """A Service, or a pod, of a namespace.

    Attributes:
        namespace: a valid name.
        service: the Service's name; "" for a pod.
        how: the start of a sentence that says how the name was read.
    """

    namespace: str
    service: str
    how: str


def is_namespace(text: str) -> bool:
    """Whether a namespace can have this name."""
    return bool(_NAMESPACE.match(text))


def is_domain(text: str) -> bool:
    """Whether a cluster can have this domain; letter case and a dot at its end do not matter."""
    return bool(_DOMAIN.match(text.lower().removesuffix(".")))


def find(target: Target, place: Place) -> InCluster | None:
    """What a host means inside of the cluster; None if it is outside.

    Args:
        target: its host is a name.
        place: where the one who connects is.

    Raises:
        InvalidUrlError: it is a name of the cluster that means nothing.
    """
    host = target.host
    labels = host.split(".")
    domain = place.cluster_domain.lower().removesuffix(".")
    for kind in ("svc", "pod"):
        suffix = f".{kind}.{domain}"
        if domain and f".{host}".endswith(suffix):
            return _full(f".{host}".removesuffix(suffix).split(".")[1:], kind, host)
    if len(labels) > 2 and labels[-1] == "svc":
        return _full(labels[:-1], "svc", host)
    if target.absolute:
        return None
    if len(labels) == 1:
        how = f"{host} is a Service of the sandbox's own namespace {place.namespace}"
        return _checked(InCluster(place.namespace, host, how))
    namespace, service = labels[-1], labels[-2]
    how = f"{host} is read as a Service of the namespace {namespace}"
    if len(labels) <= 3 and _is_service(namespace, service, place):
        return InCluster(namespace, service, how)
    if len(labels) == 2 and not _is_top(namespace, tls=target.tls):
        return _checked(InCluster(namespace, service, how))
    return None


def _is_service(namespace: str, service: str, place: Place) -> bool:
    if place.service_lookup is None or not is_namespace(namespace):
        return False
    return place.service_lookup(namespace, service) is not None


def _full(labels: list[str], kind: str, host: str) -> InCluster:
    if len(labels) < 2:
        raise InvalidUrlError(f"{host} is in the cluster, but names no {_KINDS[kind]}.")
    service = labels[-2] if kind == "svc" else ""
    what = "Service" if service else "pod"
    how = f"{host} is a {what} of the namespace {labels[-1]}"
    return _checked(InCluster(labels[-1], service, how))


def _checked(found: InCluster) -> InCluster:
    if not is_namespace(found.namespace):
        raise InvalidUrlError("What would be the namespace of the URL's host cannot be one.")
    return found


def _is_top(label: str, *, tls: bool) -> bool:
    return label in _TOP or label.startswith("xn--") or (tls and label in _TOP_OVER_TLS)
