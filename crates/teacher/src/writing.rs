//! Writes shards beside the labelling: one is encoded while the one before is read back and committed.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow};
use softshard_labels::{Commit, LabelWriter, SequenceLabels, WrittenShard};

use crate::watch::{Seconds, Shard, Watch};

/// A shard's labels.
pub(crate) struct Labelled {
    pub(crate) shard: Shard,
    pub(crate) rows: Vec<SequenceLabels>,
}

/// Writes and commits the shards that come, in their order; ends when no more do. After an error the shards before it are
/// committed.
pub(crate) fn write_shards(writer: &LabelWriter, shards: Receiver<Labelled>, watch: &Watch) -> Result<()> {
    thread::scope(|scope| {
        let (sender, written) = sync_channel::<(Shard, WrittenShard, f64)>(0);
        let committing = scope.spawn(move || -> Result<()> {
            for (shard, file, write) in written {
                let began = Instant::now();
                let record = match file.commit()? {
                    Commit::Won(record) | Commit::Lost(record) => record,
                };
                let commit = began.elapsed().as_secs_f64();
                watch.committed(&shard, &record, Seconds { write, commit });
            }
            Ok(())
        });
        let encoded = (|| -> Result<()> {
            for Labelled { shard, rows } in shards {
                let began = Instant::now();
                let mut open = writer.shard(shard.index)?;
                for row in rows {
                    open.push(row)?;
                }
                let file = open.finish()?;
                if sender.send((shard, file, began.elapsed().as_secs_f64())).is_err() {
                    break; // a commit failed: its error is returned below
                }
            }
            Ok(())
        })();
        drop(sender);
        committing.join().map_err(|_| anyhow!("the thread that commits shards panicked"))??;
        encoded
    })
}
