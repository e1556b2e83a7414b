# In the place of caddy:2. Debian's is 2.6, which does not know the option that keeps WebSockets over a reload: it gets the file
# without that line. tests/pages runs the file as it is, with a newer Caddy.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends caddy
CMD ["sh", "-c", "sed /stream_close_delay/d /etc/caddy/Caddyfile >/tmp/Caddyfile && exec caddy run --config /tmp/Caddyfile --adapter caddyfile"]
