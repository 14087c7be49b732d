//! The real machine and the real server behind the traits of [`crate::host`].

mod disks;
mod files;
mod images;
mod logs;
mod network;
mod server;
#[cfg(test)]
mod tests;
mod vmm;

pub(crate) use disks::HostDisks;
pub(crate) use files::HostFiles;
#[cfg(test)]
pub(crate) use logs::FileLog;
pub(crate) use logs::HostLogs;
pub(crate) use network::NodeNetwork;
pub(crate) use vmm::MicroVms;
#[cfg(test)]
pub(crate) use vmm::UnixGuestListener;
