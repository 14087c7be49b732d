//! OCI layers to a reproducible read-only ext4 image, and the cache of them.
