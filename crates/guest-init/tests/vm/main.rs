//! `platform-init` in a real guest: QEMU without KVM, the kernel that a node would boot here (each
//! test prints it), the protocol's frames.
//!
//! Needs `cargo xtask guest`, vhost-device-vsock (in PATH or `PLATFORM_VHOST_DEVICE_VSOCK`) and the
//! Debian packages qemu-system-x86, e2fsprogs, busybox-static and nftables; without them each test prints what is missing and is skipped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod endings;
mod environment;
mod forward;
mod machine;
mod mtu;
mod namespace;
mod output;
mod proxy;
mod time;
mod versions;
