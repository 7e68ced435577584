"""Upgrading the cluster release: everything is looked at before anything is changed.

Rooms that know nothing of each other's work, and what ties them together:

- pure: `semver`, `manifests` (YAML as Kubernetes reads it), `ownership` (who owns which field),
  `conflicts`, `remedies`, `changes`, `pods` (why one is not ready), `plan`;
- Helm, a program: `helm` (runs it), `release` (what it says of a release), `chart`, `running` (the
  upgrade itself);
- the API server: `preflight` (dry-runs every object), `rollout` (watches what becomes of it);
- `prepare`, which asks all of them and changes nothing, `definitions` and `repair`.

Whatever is done to a release is done by `helm`. docs/decisions/0018-upgrade.md says what was found
out about it, and why it is done this way.
"""

from __future__ import annotations

from typing import Final

MANAGER: Final = "helm"  # the field manager of Helm, whatever its program is called
CHART: Final = "kars-operator"
