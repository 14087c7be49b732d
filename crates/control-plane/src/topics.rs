//! Topics of change, by which long polls wait: a change wakes the subscribers of its topics, and no others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::enrollment::Member;
use model::{EnvKey, NodeId};
use tokio::sync::Notify;

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// The desired state of a node.
    Node(NodeId),
    /// An env, its instances, what is known of their nodes, or what waits in it.
    Env(EnvKey),
    /// The route table.
    Routes,
    /// The certificates of hosts, or the keys of session tickets.
    Certificates,
    /// What edges are to answer to authorities of ACME.
    Challenges,
    /// What members of before the overlay are told about each other.
    Membership,
    /// What one member is told of itself and of its peers.
    Member(Member),
    /// The directory of a node.
    Directory(NodeId),
    /// Something happened.
    Events,
    /// Who may do what.
    Access,
}

/// The topics that have subscribers.
#[derive(Debug, Default)]
pub(crate) struct Topics(Mutex<BTreeMap<Topic, Arc<Notify>>>);

impl Topics {
    /// The notifications of a topic. A caller gets those from its call of [`Notify::notified`] on.
    pub(crate) fn subscribe(&self, topic: Topic) -> Arc<Notify> {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(topics.entry(topic).or_default())
    }

    /// Wakes the subscribers of these topics. A topic without a subscriber is dropped.
    pub(crate) fn notify(&self, changed: impl Iterator<Item = Topic>) {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in changed {
            if let Some(subscribers) = topics.get(&topic) {
                subscribers.notify_waiters();
                if Arc::strong_count(subscribers) == 1 {
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
    async fn a_change_wakes_the_subscribers_of_its_topic_only() {
        let topics = Topics::default();
        let (one, two) = (Topic::Node(NodeId(1)), Topic::Node(NodeId(2)));
        let first = topics.subscribe(one.clone());
        let mut woken = std::pin::pin!(first.notified());
        assert!(!woken.as_mut().enable());
        {
            let second = topics.subscribe(two.clone());
            let mut asleep = std::pin::pin!(second.notified());
            assert!(!asleep.as_mut().enable());
            topics.notify([one].into_iter());
            assert!(woken.as_mut().enable());
            assert!(!asleep.as_mut().enable());
        }
        // A topic without a subscriber is not kept.
        topics.notify([two].into_iter());
        let kept = topics.0.lock().map(|topics| topics.len());
        assert_eq!(kept.unwrap_or_default(), 1);
    }
}
