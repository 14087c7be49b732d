//! OCI registries: resolve per architecture, digest-verified fetch, the blob cache.
