# The worker in an image without a shell. Build the .pyz first: ./build.sh && docker build -t crucible-worker .
#
# BASE is any image with /usr/bin/python3 of 3.11 or newer. Without a registry: ./crucible-worker.pyz image build --worker
ARG BASE=gcr.io/distroless/python3-debian13:nonroot

FROM ${BASE} AS unpacked
USER 0
COPY dist/crucible-worker.pyz /opt/crucible/crucible-worker.pyz
ENV SHIV_ROOT=/opt/crucible/unpacked SHIV_COMPILE_PYC=1
# Unpacked and compiled here, so that the container may run read-only. The file must keep its name and place.
RUN ["/usr/bin/python3", "-I", "/opt/crucible/crucible-worker.pyz", "version"]
RUN ["/usr/bin/python3", "-I", "-c", "import os; os.makedirs('/state/crucible-worker', 0o700)"]

FROM ${BASE}
COPY --from=unpacked /opt/crucible /opt/crucible
COPY --from=unpacked --chown=65532:65532 /state /var/lib
ENV SHIV_ROOT=/opt/crucible/unpacked
ARG VERSION=unknown
LABEL org.opencontainers.image.title="crucible-worker" \
      org.opencontainers.image.description="Pulls evaluation tasks and runs untrusted code in sandboxes" \
      org.opencontainers.image.version="${VERSION}"
USER 65532:65532
EXPOSE 8082
# -I: neither the environment nor the working directory decides what is imported. -u: logs leave at once.
ENTRYPOINT ["/usr/bin/python3", "-I", "-u", "/opt/crucible/crucible-worker.pyz"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/bin/python3", "-I", "/opt/crucible/crucible-worker.pyz", "healthcheck"]
