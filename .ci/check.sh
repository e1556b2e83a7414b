#!/usr/bin/env bash
# The quick part, before every commit: formatting, lints, tests.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --check
cargo clippy --all-targets -- -D warnings
cargo test
