# A Debian that boots: for the package.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends systemd systemd-sysv dbus curl
CMD ["/sbin/init"]
