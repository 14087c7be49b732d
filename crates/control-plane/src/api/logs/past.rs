//! The lines of the past, of all nodes that have some, in the order of time.
//!
//! Each node sends the lines of its instances in that order; here they are merged. A line is sent on when every node's next one is known or none
//! is to come, so a slow node slows the reader down, and never more than a few pieces of each node are in memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use api::node::LogsWanted;
use api::user::EndedRow;
use bytes::Bytes;
use model::{InstanceId, NodeId, ProcessName, Timestamp};
use scheduler::cluster_state::ClusterState;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Instances, Reader, gone, missing, platform_line, send_notice};
use crate::limits::STREAM_BUFFER_PIECES;

/// What of a line its place is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Head {
    at: Timestamp,
    instance: InstanceId,
}

/// The lines of one node, in their order.
#[derive(Debug)]
struct Source {
    pieces: mpsc::Receiver<Bytes>,
    lines: VecDeque<(Head, Bytes)>,
}

impl Source {
    /// When the next line was written; waits for it. Absent: none comes any more.
    async fn next_at(&mut self) -> Option<Timestamp> {
        while self.lines.is_empty() {
            let piece = self.pieces.recv().await?;
            let lines = piece.split_inclusive(|byte| *byte == b'\n');
            // Whole lines, which were looked at when they came.
            let lines = lines.filter_map(|line| {
                let head = serde_json::from_slice(line).ok()?;
                Some((head, piece.slice_ref(line)))
            });
            self.lines.extend(lines);
        }
        self.lines.front().map(|(head, _)| head.at)
    }
}

/// The lines of several nodes, in the order of time.
#[derive(Debug, Default)]
struct Merge {
    sources: Vec<Source>,
    /// Sources by the time of their next line; of two of the same time the first.
    next: BinaryHeap<Reverse<(Timestamp, usize)>>,
    /// The source that was taken from last.
    taken: Option<usize>,
}

impl Merge {
    /// Waits for the first line of each.
    async fn begin(sources: Vec<mpsc::Receiver<Bytes>>) -> Self {
        let mut merge = Self::default();
        for (number, pieces) in sources.into_iter().enumerate() {
            merge.sources.push(Source {
                pieces,
                lines: VecDeque::new(),
            });
            merge.look(number).await;
        }
        merge
    }

    async fn look(&mut self, number: usize) {
        if let Some(at) = self.sources[number].next_at().await {
            self.next.push(Reverse((at, number)));
        }
    }

    /// The next line; absent: there is none any more.
    async fn next(&mut self) -> Option<(Head, Bytes)> {
        if let Some(number) = self.taken.take() {
            self.look(number).await;
        }
        let Reverse((_, number)) = self.next.pop()?;
        self.taken = Some(number);
        self.sources[number].lines.pop_front()
    }
}

/// What one node is asked for.
type Asked = BTreeMap<InstanceId, ProcessName>;

impl Reader {
    /// Sends the lines of the past of these, and how those ended that are gone. False: nothing more is to be sent.
    pub(super) async fn send_past(
        &self,
        cluster: &ClusterState,
        running: Instances,
        ended: &[EndedRow],
    ) -> bool {
        tokio::select! {
            () = self.lines.closed() => false,
            () = self.app.shutdown.cancelled() => false,
            sent = self.merged(cluster, running, ended) => sent.is_some(),
        }
    }

    /// Absent: the reader has left.
    async fn merged(
        &self,
        cluster: &ClusterState,
        running: Instances,
        ended: &[EndedRow],
    ) -> Option<()> {
        let mut by_node: BTreeMap<NodeId, Asked> = BTreeMap::new();
        for (id, (node, process)) in running {
            by_node.entry(node).or_default().insert(id, process);
        }
        for row in ended {
            let asked = by_node.entry(row.node).or_default();
            asked.insert(row.id, row.process.clone());
        }
        let (ends, mut endings) = mpsc::unbounded_channel();
        let (mut sources, mut notices) = (Vec::new(), Vec::new());
        let mut asked_of = BTreeSet::new();
        for (node, instances) in &by_node {
            if let Some(why) = self.cannot_ask(cluster, *node) {
                notices.push((instances.clone(), why));
                continue;
            }
            let (lines, source) = mpsc::channel(STREAM_BUFFER_PIECES);
            let wanted = LogsWanted {
                follow: false,
                ..self.choice(instances.keys().copied())
            };
            let streams = &self.app.streams;
            match streams.ask_for_logs(*node, wanted, lines, self.over(), ends.clone()) {
                Ok(stream) => {
                    self.give_up_later(*node, stream);
                    sources.push(source);
                    asked_of.extend(instances.keys().copied());
                }
                Err(error) => notices.push((instances.clone(), error.to_string())),
            }
        }
        let mut gone_at: BTreeMap<(Timestamp, InstanceId), &EndedRow> = ended
            .iter()
            .filter(|row| self.chooses(row))
            .map(|row| ((row.ended_at, row.id), row))
            .collect();
        let mut merge = Merge::begin(sources).await;
        let mut seen = BTreeSet::new();
        while let Some((head, line)) = merge.next().await {
            while let Some(first) = gone_at.first_entry()
                && first.key().0 < head.at
            {
                self.send_gone(first.remove()).await?;
            }
            seen.insert(head.instance);
            self.lines.send(line).await.ok()?;
        }
        for row in gone_at.into_values() {
            self.send_gone(row).await?;
        }
        // Each stream that was asked for has ended by now, and said so before its lines did.
        while let Ok(end) = endings.try_recv() {
            if !end.opened {
                asked_of.retain(|id| !end.instances.contains(id));
                if let Some(instances) = by_node.get(&end.node) {
                    notices.push((instances.clone(), missing(&end)));
                }
            }
        }
        let query = &self.query;
        let wants_all = query.since.is_none() && query.until.is_none() && query.text.is_none();
        let without_lines = ended.iter().filter(|row| {
            wants_all && self.tail() > 0 && asked_of.contains(&row.id) && !seen.contains(&row.id)
        });
        for row in without_lines {
            let of = BTreeMap::from([(row.id, row.process.clone())]);
            notices.push((of, format!("{} keeps no lines of it any more", row.node)));
        }
        for (instances, text) in notices {
            send_notice(&self.lines, &instances, &text).await;
        }
        Some(())
    }

    /// Whether the reader is to be told how an instance ended.
    fn chooses(&self, row: &EndedRow) -> bool {
        let query = &self.query;
        query.since.is_none_or(|since| row.ended_at >= since)
            && query.until.is_none_or(|until| row.ended_at < until)
            && (query.text.as_ref()).is_none_or(|text| gone(row).contains(text.as_str()))
    }

    async fn send_gone(&self, row: &EndedRow) -> Option<()> {
        let line = platform_line(row.id, &row.process, row.ended_at, gone(row));
        self.lines.send(line).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at: u64, instance: u32) -> String {
        format!("{{\"at\":{at},\"instance\":\"{instance:08x}\",\"text\":\"x\"}}\n")
    }

    #[tokio::test]
    async fn lines_of_several_nodes_are_in_the_order_of_time() {
        let pieces: [&[&[u64]]; 3] = [&[&[1, 5, 5], &[9]], &[&[2], &[3, 3, 10]], &[]];
        let mut sources = Vec::new();
        for (node, pieces) in (1..).zip(pieces) {
            let (sender, source) = mpsc::channel(1);
            sources.push(source);
            let pieces: Vec<String> = pieces
                .iter()
                .map(|times| times.iter().map(|at| line(*at, node)).collect())
                .collect();
            tokio::spawn(async move {
                for piece in pieces {
                    // An empty line is a sign of life, and none of anybody's.
                    let _ = sender.send(Bytes::from(format!("\n{piece}"))).await;
                }
            });
        }
        let mut merge = Merge::begin(sources).await;
        let mut merged = Vec::new();
        while let Some((head, bytes)) = merge.next().await {
            assert_eq!(bytes, line(head.at.0, head.instance.0));
            merged.push((head.at.0, head.instance.0));
        }
        let expected = [
            (1, 1),
            (2, 2),
            (3, 2),
            (3, 2),
            (5, 1),
            (5, 1),
            (9, 1),
            (10, 2),
        ];
        assert_eq!(merged, expected);
    }
}
