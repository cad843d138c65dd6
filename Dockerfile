# The worker in an image without a shell. Build the .pyz first: ./build.sh && docker build -t crucible-worker .
#
# Both stages must have the same Python minor version, or what is compiled in the first is ignored in the second.
ARG BUILD=python:3.13-slim-trixie
ARG BASE=gcr.io/distroless/python3-debian13:nonroot

FROM ${BUILD} AS unpacked
COPY dist/crucible-worker.pyz /opt/crucible/crucible-worker.pyz
# Unpacked and compiled here, so that the container may run read-only. The file must keep its name and place.
RUN SHIV_ROOT=/opt/crucible/unpacked SHIV_COMPILE_PYC=1 python3 -I /opt/crucible/crucible-worker.pyz version \
    && chmod -R a+rX,go-w /opt/crucible

FROM ${BASE}
COPY --from=unpacked /opt/crucible /opt/crucible
ENV SHIV_ROOT=/opt/crucible/unpacked
EXPOSE 8082
# -I: neither the environment nor the working directory decides what is imported. -u: logs leave at once.
ENTRYPOINT ["/usr/bin/python3", "-I", "-u", "/opt/crucible/crucible-worker.pyz"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/bin/python3", "-I", "/opt/crucible/crucible-worker.pyz", "healthcheck"]
