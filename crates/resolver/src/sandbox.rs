//! What the process keeps of its rights.

use process_handle::sandbox::Sandbox;

/// No file can be opened, and sockets of the internet protocols only.
pub(crate) const SANDBOX: Sandbox<'static> = Sandbox {
    // A few sockets for each question that waits, and the connections.
    open_files: 8192,
    #[rustfmt::skip]
    calls: &[
        // Questions, answers and requests.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_ppoll,
        libc::SYS_read, libc::SYS_readv, libc::SYS_write, libc::SYS_writev,
        libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_recvmsg, libc::SYS_recvfrom,
        libc::SYS_bind, libc::SYS_connect, libc::SYS_accept4, libc::SYS_shutdown,
        libc::SYS_setsockopt, libc::SYS_getsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    ],
    socket_families: &[libc::AF_INET, libc::AF_INET6],
};
