//! What the process of an interface keeps of its rights.

use process_handle::sandbox::Sandbox;

/// It carries packets and answers the agent: no file and no socket can be opened.
pub(crate) const SANDBOX: Sandbox<'static> = Sandbox {
    // The device, the socket, the control socket and its connections.
    open_files: 64,
    #[rustfmt::skip]
    calls: &[
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_epoll_ctl, libc::SYS_read, libc::SYS_readv, libc::SYS_write, libc::SYS_writev,
        libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_sendto,
        libc::SYS_recvmsg, libc::SYS_recvmmsg, libc::SYS_recvfrom,
        libc::SYS_accept4, libc::SYS_setsockopt, libc::SYS_getsockopt,
    ],
    socket_families: &[],
};
