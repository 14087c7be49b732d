//! All of an edge that follows the server, and writes in its data folder: routes, certificates, challenges, membership and the overlay. It ends where it is
//! dropped, and begins again as often as it is run.

// ring: the crate's root has the public options and errors, and starts the edge by them.

use std::path::PathBuf;
use std::sync::Arc;

use ::metrics::Waits;
use api::member::OverlayReport;
use membership::OverlayState;
use overlay_member::OverlayMember;
use tokio::sync::{Mutex, watch};

use crate::error_pages::{self, Folder};
use crate::forward::Edge;
use crate::kept_routes::KeptRoutes;
use crate::overlay_link::{self, EdgeAttachment};
use crate::tls::Tls;
use crate::{EdgeError, EdgeOptions, follow, follow_certificates, follow_challenges};

pub(crate) struct Following {
    pub(crate) options: EdgeOptions,
    pub(crate) edge: Arc<Edge>,
    /// Absent where the edge has no port for HTTPS.
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) kept: Arc<Mutex<KeptRoutes>>,
    /// The folder of error pages, as it was read last.
    pub(crate) error_pages: Option<(PathBuf, Folder)>,
}

impl Following {
    /// Follows for ever; with the first routes, what waited for them is over. An error: this is no member of a cluster, and cannot become one.
    pub(crate) async fn run(&self, first_routes: Option<Waits>) -> Result<(), EdgeError> {
        let options = &self.options;
        let (client, membership) = follow::join(options).await?;
        let overlay = OverlayState::load(&membership, &options.data_dir).await;
        let underlay = membership::underlay(&membership.server, options.underlay).await;
        let report = watch::Sender::new(OverlayReport {
            underlay,
            ..OverlayReport::default()
        });
        let (asked, requests) = watch::channel(None);
        let place = overlay_link::place(&membership, &options.data_dir);
        let member = OverlayMember {
            attachment: EdgeAttachment {
                link: place.link.clone(),
            },
            place,
            server: membership.server.clone(),
            underlay: options.underlay,
            client: client.clone(),
            requests,
        };
        let (overlay, state) = watch::channel(overlay);
        let reported = report.subscribe();
        let certificates = async {
            if let Some(tls) = self.tls.clone() {
                let files = tls.files.clone();
                let follow = follow_certificates::follow(tls, client.clone());
                tokio::join!(follow, files.keep_up());
            }
        };
        let pages = async {
            if let Some((path, folder)) = self.error_pages.clone() {
                error_pages::follow(&self.edge.error_pages, path, folder).await;
            }
        };
        let edge = || Arc::clone(&self.edge);
        tokio::join!(
            pages,
            certificates,
            follow_challenges::follow(edge(), client.clone(), self.tls.is_some()),
            follow::follow(edge(), client.clone(), Arc::clone(&self.kept), first_routes),
            membership::keep(
                membership,
                options.data_dir.clone(),
                client.clone(),
                overlay,
                reported,
                asked
            ),
            overlay_member::keep(member, state, report),
        );
        Ok(())
    }
}
