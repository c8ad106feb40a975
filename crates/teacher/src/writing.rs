//! Writes shards beside the labelling: one is encoded while the one before is read back and committed.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow};
use softshard_labels::{LabelWriter, SequenceLabels, WrittenShard};

/// Seconds of the two halves of writing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seconds {
    /// Checking, encoding, hashing, syncing.
    pub(crate) write: f64,
    /// Reading back and committing.
    pub(crate) commit: f64,
}

/// Writes and commits the shards that come, in their order; ends when no more do. After an error the shards before it are
/// committed.
pub(crate) fn write_shards(
    writer: &LabelWriter,
    shards: Receiver<(usize, Vec<SequenceLabels>)>,
) -> Result<Seconds> {
    thread::scope(|scope| {
        let (sender, written) = sync_channel::<WrittenShard>(0);
        let committing = scope.spawn(move || -> Result<f64> {
            let mut seconds = 0.0;
            for shard in written {
                let began = Instant::now();
                shard.commit()?;
                seconds += began.elapsed().as_secs_f64();
            }
            Ok(seconds)
        });
        let mut write = 0.0;
        let encoded = (|| -> Result<()> {
            for (shard, rows) in shards {
                let began = Instant::now();
                let mut open = writer.shard(shard)?;
                for row in rows {
                    open.push(row)?;
                }
                let shard = open.finish()?;
                write += began.elapsed().as_secs_f64();
                if sender.send(shard).is_err() {
                    break; // a commit failed: its error is returned below
                }
            }
            Ok(())
        })();
        drop(sender);
        let commit = committing.join().map_err(|_| anyhow!("the thread that commits shards panicked"))??;
        encoded.map(|()| Seconds { write, commit })
    })
}
