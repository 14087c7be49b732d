//! The instance's guest: the vsock link to it, what it is sent, and what its events mean.

// ring: the task is one state machine, and this is its part about the guest.

use std::future::pending;
use std::time::Duration;

use guest_protocol::{BootFailure, Phase, refusal};
use model::image::ImageConfig;
use model::instance::InstanceState;
use node_core::instance::Event;
use tokio::time::timeout;

use super::InstanceTask;
use crate::directory::Guest;
use crate::guest_link::{GuestEvent, GuestLink};
use crate::host::{HostError, HostResult};

/// An adopted guest that waits for its config gets this long until its secrets are there.
const SECRETS_TIMEOUT: Duration = Duration::from_secs(10);
/// Most forwarded ports that are named.
const SHOWN_PORTS: usize = 4;

impl InstanceTask {
    /// The agent before this one may have ended before the guest asked for its config.
    pub(super) async fn send_config_again(&mut self) {
        let images = &self.machine.host.images;
        let prepared = images.prepare(&self.spec.image, &|_| ()).await;
        // The server may be out of reach: then the boot watchdog ends the guest, as below.
        let spec = &self.spec;
        let secrets = self.secrets.get(&*self.machine.host.server, spec, &|_| ());
        if !matches!(timeout(SECRETS_TIMEOUT, secrets).await, Ok(Ok(_))) {
            tracing::warn!(
                instance = %self.id(),
                "cannot fetch the secrets of an adopted VM, which is not sent its boot config"
            );
            return;
        }
        match prepared {
            Ok(prepared) => {
                if let Err(error) = self.send_config(&prepared.config) {
                    tracing::warn!(
                        instance = %self.id(), %error,
                        "cannot make the boot config of an adopted VM, which is not sent one"
                    );
                }
            }
            // The boot watchdog ends the guest.
            Err(error) => tracing::warn!(
                instance = %self.id(), %error,
                "cannot prepare the image of an adopted VM, which is not sent its boot config"
            ),
        }
    }

    pub(super) fn on_guest_event(&mut self, event: GuestEvent) -> Vec<Event> {
        let booting = self.life.state() == InstanceState::Booting;
        match event {
            GuestEvent::Hello(Phase::Running) | GuestEvent::Started => {
                self.config = None;
                if let Some(link) = &self.link {
                    link.booted();
                }
                booting.then_some(Event::GuestStarted).into_iter().collect()
            }
            GuestEvent::Hello(_) => booting.then_some(Event::GuestDialled).into_iter().collect(),
            GuestEvent::Progressed => {
                // It copies: the boot of another need not wait for that.
                self.boot_slot = None;
                booting
                    .then_some(Event::GuestProgressed)
                    .into_iter()
                    .collect()
            }
            GuestEvent::Bound(_) => vec![],
            GuestEvent::Forwarded(ports) => {
                self.forwarded = ports;
                self.show();
                vec![]
            }
            GuestEvent::BootFailed(failure) => {
                self.end_acknowledged = true;
                self.end_note = Some(format!("could not {}: {}", failure.step, failure.reason));
                vec![Event::BootFailed(failure)]
            }
            GuestEvent::Exited(exit) => {
                self.end_acknowledged = true;
                self.end_note = Some(format!("ended: {exit}"));
                let mut events = Vec::new();
                // The event that it had started was lost with a connection.
                events.extend(booting.then_some(Event::GuestStarted));
                events.push(Event::Exited(exit));
                events
            }
            // A guest that runs was accepted before: this is an app's doing and costs one connection.
            GuestEvent::Refused { .. } if !booting => vec![],
            GuestEvent::Refused { contract } => vec![Event::BootFailed(BootFailure {
                step: "agree on a protocol version".to_owned(),
                reason: refusal(contract),
                exit_code: None,
            })],
        }
    }

    pub(super) async fn listen(&mut self) -> HostResult<()> {
        let listener = self.machine.host.vmm.listen(self.id()).await?;
        let link = GuestLink::serve(
            listener,
            self.log.clone(),
            self.machine.clock,
            self.guest_token.clone(),
            self.machine.mtu.clone(),
        );
        let guest = Guest {
            calls: link.calls().clone(),
            address: self.spec.address,
        };
        self.machine.directory.set_guest(self.id(), Some(guest));
        self.link = Some(link);
        // The agent before this one may have asked already; asking again is harmless.
        if self.life.state() == InstanceState::Stopping {
            self.ask_stop();
        }
        Ok(())
    }

    /// Makes the guest's config, which it is sent as soon as its token is recorded.
    pub(super) fn send_config(&mut self, image: &ImageConfig) -> HostResult<()> {
        let spec = &self.spec;
        let secrets = self.secrets.known().unwrap_or_default();
        let config = node_core::boot::boot_config(image, spec, &secrets, &self.machine.facts_now())
            .map_err(|error| HostError::permanent(error.to_string()))?;
        self.config = Some(config);
        self.release_config();
        Ok(())
    }

    /// Sends the guest its config, unless an agent that restarts now would not know the guest's init: by then the app may
    /// run, and ask in init's place.
    pub(super) fn release_config(&mut self) {
        if self.guest_token.is_some()
            && self.unwritten.is_none()
            && let (Some(link), Some(config)) = (&self.link, self.config.take())
        {
            link.boot(config);
        }
    }

    pub(super) fn ask_stop(&self) {
        if let Some(link) = &self.link {
            link.stop(self.spec.stop.timeout_ms);
        }
    }
}

pub(super) async fn next_guest_event(link: &mut Option<GuestLink>) -> GuestEvent {
    match link {
        Some(link) => match link.next().await {
            Some(event) => event,
            None => pending().await,
        },
        None => pending().await,
    }
}

/// The ports that are forwarded to, for people.
pub(super) fn forwarded_detail(ports: &[u16]) -> String {
    let shown = &ports[..ports.len().min(SHOWN_PORTS)];
    let names: Vec<_> = shown.iter().map(u16::to_string).collect();
    let more = match ports.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("not on IPv6, forwarded: {}{more}", names.join(", "))
}
