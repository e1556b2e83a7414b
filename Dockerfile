# syntax=docker/dockerfile:1
# Takes the place of anycable/anycable-go: same port, same variables, the server is PID 1 and gets SIGTERM itself.

FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin ringcable && install -s target/release/ringcable /usr/local/bin/ringcable

FROM debian:bookworm-slim
# Certificates: RPC over https is checked against the system's roots.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/ringcable /usr/local/bin/ringcable
# Start commands that name the reference's binary go on working.
RUN ln -s ringcable /usr/local/bin/anycable-go
USER nobody
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/ringcable"]
