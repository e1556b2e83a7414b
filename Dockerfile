# syntax=docker/dockerfile:1
# Takes the place of anycable/anycable-go: same port, same variables, the server is PID 1 and gets SIGTERM itself.
#
#   docker build -t ringcable .
#   docker run -p 8080:8080 -e ANYCABLE_RPC_HOST=http://web:3000/_anycable -e ANYCABLE_SECRET=… ringcable
#
# docs/deployment.md has the whole picture.

# Needs cargo and a C compiler. Of the version in rust-toolchain.toml, or rustup fetches that one.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
# Needs apt and a glibc that is not older than that of RUST_IMAGE.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin ringcable && install -s target/release/ringcable /usr/local/bin/ringcable

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="ringcable" \
      org.opencontainers.image.description="An Action Cable server for Linux, drop-in for anycable-go" \
      org.opencontainers.image.licenses="MIT"
# Certificates: RPC over https is checked against the system's roots. curl: health checks, this one and those of Compose files.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build /usr/local/bin/ringcable /usr/local/bin/ringcable
COPY deploy/docker/ringcable-health /usr/local/bin/ringcable-health
# Entry points that name the reference's binary go on working; as a command, its name is skipped by ringcable itself.
RUN ln -s ringcable /usr/local/bin/anycable-go
# The built-in default, localhost, would be reached by nobody but the container itself.
ENV ANYCABLE_HOST=0.0.0.0
# `nobody`, as a number: Kubernetes' runAsNonRoot cannot look up names.
USER 65534:65534
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/usr/local/bin/ringcable-health"]
ENTRYPOINT ["/usr/local/bin/ringcable"]
