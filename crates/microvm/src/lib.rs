//! VMM drivers, taps, scratch disks, vsock and the console.
