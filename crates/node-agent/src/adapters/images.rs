//! The image cache behind its trait.

use api::node::CachedImage;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use model::Digest;
use model::instance::PinnedImage;

use crate::host::{HostError, HostResult, ImagePin, Images, PreparedImage, Progress};
use crate::images::ImageCache;
use display::chain;

impl Images for ImageCache {
    fn prepare<'a>(
        &'a self,
        image: &'a PinnedImage,
        progress: &'a Progress,
    ) -> BoxFuture<'a, HostResult<PreparedImage>> {
        async move {
            let prepared = Self::prepare(self, image, progress).await;
            prepared.map_err(|error| {
                let mut reason = chain(&error);
                if let Some(hint) = error.hint() {
                    reason.push_str("; ");
                    reason.push_str(&hint);
                }
                HostError {
                    transient: error.is_transient(),
                    reason,
                }
            })
        }
        .boxed()
    }

    fn pin(&self, digest: &Digest) -> ImagePin {
        Box::new(self.used_by_instance(digest))
    }

    fn set_pinned(&self, images: Vec<Digest>) {
        Self::set_pinned(self, images);
    }

    fn list(&self) -> Vec<CachedImage> {
        self.listed()
    }

    fn tidy(&self) -> BoxFuture<'_, ()> {
        Self::tidy(self).boxed()
    }

    fn make_room(&self) -> BoxFuture<'_, ()> {
        self.remove_over(0).boxed()
    }
}
