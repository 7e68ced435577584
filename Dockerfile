# The router, and `kars guard` for the pod's init container. Build it in this directory:
#
#   docker build --build-arg BASE=python:3.13-slim@sha256:... --tag kars-router:0.1.0 .
#
# The digest of the base image is what makes two builds the same. It cannot stand here: it is another
# one after every update, and one that nobody renews is an image without its security updates.
# `docker buildx imagetools inspect python:3.13-slim` says which it is today; docs/operator.md has more.
ARG BASE=python:3.13-slim

# --- installed where there is everything that installing takes -------------------------------------
FROM ${BASE} AS build

# Plugins that are loaded in every router, as directories of this repository or names for pip. Without
# the one for policies a router refuses configurations that have some.
ARG PLUGINS="./plugins/kars-plugin-toolpolicy"

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kars_router kars_router
COPY plugins plugins
# hadolint ignore=SC2086 -- several plugins are several words
RUN python -m venv --without-pip /opt/kars \
    && pip --python /opt/kars/bin/python install --no-cache-dir --only-binary :all: \
        . ${PLUGINS}

# --- and run where there is only what running takes ------------------------------------------------
FROM ${BASE}

# nft, by which the guard puts its rules in force. Its version is that of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nftables \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 1001 --group 1001 --mode 0700 /var/lib/kars

COPY --from=build /opt/kars /opt/kars

# Nothing is written but the state; the image may be read-only but for this directory.
ENV PATH=/opt/kars/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KARS_STATE_DIR=/var/lib/kars \
    KARS_NO_UPDATE_CHECK=1

# The one user whom the guard lets out of the pod. (The guard itself needs root, which the pod says.)
USER 1001:1001
EXPOSE 8443 9090
ENTRYPOINT ["kars"]
CMD ["run", "-c", "/etc/kars/kars.yaml"]
