# In the place of rust:…-slim-bookworm: a C compiler, and this machine's toolchain and downloaded crates by volumes.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
ENV PATH=/rust/bin:$PATH CARGO_HOME=/cargo CARGO_NET_OFFLINE=true
