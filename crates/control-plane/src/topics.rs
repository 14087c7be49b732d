//! Who waits for what: a change wakes those whom it is about, and nobody else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::{EnvKey, NodeId};
use tokio::sync::Notify;

/// What may be otherwise than before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// The desired state of a node.
    Node(NodeId),
    /// An env, its instances, what is known of their nodes, or what waits in it.
    Env(EnvKey),
    /// The route table.
    Routes,
}

/// The topics that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Topics(Mutex<BTreeMap<Topic, Arc<Notify>>>);

impl Topics {
    /// Wakes whoever listens from the moment of [`Notify::notified`] on.
    pub(crate) fn listen(&self, topic: Topic) -> Arc<Notify> {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(topics.entry(topic).or_default())
    }

    /// Wakes those who listen. A topic that nobody listens to any more is dropped.
    pub(crate) fn wake(&self, changed: impl Iterator<Item = Topic>) {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in changed {
            if let Some(listeners) = topics.get(&topic) {
                listeners.notify_waiters();
                if Arc::strong_count(listeners) == 1 {
                    topics.remove(&topic);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_wakes_those_whom_it_is_about() {
        let topics = Topics::default();
        let (one, two) = (Topic::Node(NodeId(1)), Topic::Node(NodeId(2)));
        let first = topics.listen(one.clone());
        let mut woken = std::pin::pin!(first.notified());
        assert!(!woken.as_mut().enable());
        {
            let second = topics.listen(two.clone());
            let mut asleep = std::pin::pin!(second.notified());
            assert!(!asleep.as_mut().enable());
            topics.wake([one].into_iter());
            assert!(woken.as_mut().enable());
            assert!(!asleep.as_mut().enable());
        }
        // Nobody listens: nothing is kept.
        topics.wake([two].into_iter());
        let kept = topics.0.lock().map(|topics| topics.len());
        assert_eq!(kept.unwrap_or_default(), 1);
    }
}
