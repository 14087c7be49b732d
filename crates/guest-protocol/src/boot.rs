//! What a guest is to run, and the fixed places in it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::instance::{Init, ProxyProtocol, SecretBundle};
use serde::{Deserialize, Serialize};

/// Directory of secret bundles in the guest: `/run/secrets/<bundle>/`.
pub const SECRETS_DIR: &str = "/run/secrets";
/// Directory of volumes in the guest: `/mnt/volumes/<name>`.
pub const VOLUMES_DIR: &str = "/mnt/volumes";
/// Address of the node's end of an instance's link; the next hop of the instance's default routes.
pub const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Address of the name server of all instances; the node chooses what answers there (RFC 7335 reserves
/// 192.0.0.0/29 for the inside of such translations).
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 3);

/// The domain of the names of instances, reserved for private use (ICANN, 2024): `<process>.<env>.<app>.internal`.
pub const INTERNAL_DOMAIN: &str = "internal";

/// Everything a guest needs to run its instance, resolved by the node from the image's config and the
/// instance's spec. At most [`MAX_BOOT_FRAME_BYTES`](crate::MAX_BOOT_FRAME_BYTES) as a frame.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// Host name of the guest.
    pub hostname: String,
    /// Program and arguments; at least one. The program is looked up in `PATH` as execvp does.
    pub argv: Vec<String>,
    /// The whole environment, in order, the platform's variables included.
    pub environment: Vec<(String, String)>,
    /// Working directory; made when missing.
    pub working_dir: String,
    /// `user[:group]` by name or number, resolved by the image's own /etc/passwd and /etc/group.
    pub user: String,
    /// Name of the signal that stops the app: the manifest's, else the image's, else SIGTERM.
    pub stop_signal: String,
    /// Who is PID 1 of the app's PID namespace.
    #[serde(default, skip_serializing_if = "Init::is_platform")]
    pub init: Init,
    /// The network.
    pub network: GuestNetwork,
    /// Block device of the read-only root disk (`/dev/vda`).
    pub root_device: String,
    /// Block device of the scratch disk.
    pub scratch_device: String,
    /// Volumes by device.
    pub volumes: Vec<VolumeMount>,
    /// Directories that the image declares as `Volumes`; made when missing, on the scratch disk.
    pub image_volumes: Vec<String>,
    /// Secret bundles, for the tmpfs at [`SECRETS_DIR`].
    pub secrets: Vec<SecretBundle>,
    /// Ports of the guest's PROXY adapter. Empty: the guest runs no adapter.
    pub proxy: Vec<ProxyPort>,
    /// Ports at which the app is reached though it listens on loopback only: the manifest's, and the health check's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Whether [`Self::argv`] is run when the node asks for it ([`ExecRequest::main`](crate::ExecRequest::main)), on the streams of that session. Until
    /// then, and for as long as it runs, the app's main process is a placeholder; the guest ends with the session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attached: bool,
    /// Modes of the files of secret bundles, by name; 0444 for others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_modes: BTreeMap<String, u32>,
}

impl std::fmt::Debug for BootConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Variables may hold secrets: their names only.
        let names: Vec<_> = self.environment.iter().map(|(name, _)| name).collect();
        f.debug_struct("BootConfig")
            .field("hostname", &self.hostname)
            .field("argv", &self.argv)
            .field("environment", &names)
            .field("working_dir", &self.working_dir)
            .field("user", &self.user)
            .field("init", &self.init)
            .field("network", &self.network)
            .field("volumes", &self.volumes)
            .field("secrets", &self.secrets)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

/// A guest's network: one address in the cluster, one for egress, one gateway, one MTU (ADR 0004).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// The instance's address, a /128.
    pub address: Ipv6Addr,
    /// Source address of egress, a /32. It means something on the instance's node only.
    pub ipv4: Ipv4Addr,
    /// Link-local next hop of the default routes, IPv4's too (RFC 8950).
    pub gateway: Ipv6Addr,
    /// MTU of the interface, in bytes.
    pub mtu: u32,
    /// Name servers for resolv.conf. Empty: the image's own file stays.
    pub resolvers: Vec<IpAddr>,
    /// Domains in which names without a dot are looked up first (resolv.conf(5), `search`), the first one first. They count where there are
    /// [`Self::resolvers`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
}

/// A port whose clients come through edges that send a PROXY v2 header. The guest's adapter listens on
/// the ingress port and connects to the app's own port, which stays plain for its neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyPort {
    /// Port of the adapter, on the instance's own address.
    pub ingress: u16,
    /// The app's port.
    pub port: u16,
    /// Whether the app gets the header too.
    pub mode: ProxyProtocol,
    /// Peers that may connect: those whose address equals this one in the bits of [`Self::peers_mask`].
    pub peers: Ipv6Addr,
    /// The bits of [`Self::peers`] that are compared.
    pub peers_mask: Ipv6Addr,
}

/// A volume by device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Block device (`/dev/vdc`).
    pub device: String,
    /// The volume's name.
    pub name: String,
    /// Where it is found beside `/mnt/volumes/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whose it is, `user[:group]` as [`BootConfig::user`]. Absent: the app's user's, or what the image says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}
