//! Reads a finished label dataset: verified at open, found by key, decoded row group by row group.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::manifest::{LabelsManifest, check_files, load_labels};
use crate::host::parallel;
use crate::shard::{LabelGroup, RowPlace, RowSize, ShardReader, ShardRecord, read_row, row_sizes};
use crate::values::{Error, LabelLimits, ReadLimits, SequenceKey, SequenceLabels, quoted};

/// Decoded row groups that are kept: about 7 MB each for top-64.
const CACHED_GROUPS: usize = 16;
/// Bytes of them; the newest is kept whatever its size.
const CACHED_BYTES: usize = 512 << 20;
/// A row group that is asked for again while it is among the last of these is decoded whole: someone reads in order.
const RECENT_GROUPS: usize = 4;

/// A finished label dataset.
///
/// Memory: 28 bytes a sequence for the index, about 6 KB a row group for the footers, and 16 decoded row groups; 30 to 60 bytes more
/// a sequence from the first search by key on. Shards on local file systems are memory-mapped, and pages are given back when
/// they were decoded; others are read row group by row group.
/// Reading takes `&self` and may be done from many threads.
#[derive(Debug)]
pub struct LabelDataset {
    dir: PathBuf,
    manifest: LabelsManifest,
    manifest_blake3: String,
    limits: ReadLimits,
    label_limits: LabelLimits,
    shards: Vec<ShardReader>,
    rows: Vec<Row>,
    /// Made by the first search.
    by_key: OnceLock<HashMap<SequenceKey, usize>>,
    groups: Vec<GroupPlace>,
    cache: Mutex<Cache>,
}

/// What was read last, newest first.
#[derive(Debug, Default)]
struct Cache {
    groups: VecDeque<(GroupId, Arc<LabelGroup>)>,
    /// Row groups of which a row was read alone.
    recent: VecDeque<GroupId>,
}

/// Shard and row group.
type GroupId = (usize, usize);

/// Key and sizes of a row, in few bytes: there are millions.
#[derive(Clone, Copy, Debug)]
struct Row {
    key: SequenceKey,
    input_tokens: u32,
    labelled_tokens: u32,
    /// Among the row groups of all shards.
    group: u32,
}

impl Row {
    fn counts(&self) -> (usize, usize) {
        let count = |count| usize::try_from(count).expect("32 bits fit an address");
        (count(self.input_tokens), count(self.labelled_tokens))
    }
}

/// A row group of a shard.
#[derive(Clone, Copy, Debug)]
struct GroupPlace {
    id: GroupId,
    first_row: usize,
}

impl LabelDataset {
    /// Opens a dataset with the default limits.
    ///
    /// # Errors
    /// See [`LabelDataset::open_with`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(dir, ReadLimits::default())
    }

    /// Opens a dataset: reads the manifest, hashes all shards in parallel, checks schema and limits, and builds the
    /// index from the small columns.
    ///
    /// # Errors
    /// [`Error::Bad`] naming what is wrong: not finished, a shard that is damaged, missing or too many, other columns,
    /// a limit; I/O.
    pub fn open_with(dir: impl AsRef<Path>, limits: ReadLimits) -> Result<Self, Error> {
        let dir = dir.as_ref().to_owned();
        let (manifest, bytes) = load_labels(&dir, &limits)?;
        check_files(&dir, "labels", &manifest.shards, &limits)?;
        let mut rows = index_of(&dir.join("manifest.json"), manifest.rows)?;
        let schema = manifest.plan.shard_schema();
        let opened = parallel::map(manifest.shards.len(), |index| {
            let record = &manifest.shards[index];
            let shard = ShardReader::open(&dir.join("data").join(&record.file), record, &schema, &limits)?;
            let groups = index_shard(&shard, record)?;
            Ok((shard, groups))
        })
        .map_err(|error| error.within(quoted(&dir)))?;

        let mut shards = Vec::with_capacity(opened.len());
        let mut groups = Vec::new();
        for (index, (shard, of_shard)) in opened.into_iter().enumerate() {
            shards.push(shard);
            for (group, sizes) in of_shard.into_iter().enumerate() {
                let number = narrow("row groups", groups.len())?;
                groups.push(GroupPlace { id: (index, group), first_row: rows.len() });
                for RowSize { key, input_tokens, labelled_tokens } in sizes {
                    let [input_tokens, labelled_tokens] =
                        [narrow("tokens", input_tokens)?, narrow("tokens", labelled_tokens)?];
                    rows.push(Row { key, input_tokens, labelled_tokens, group: number });
                }
            }
        }
        let (manifest_blake3, label_limits) =
            (blake3::hash(&bytes).to_hex().to_string(), manifest.plan.limits());
        Ok(Self {
            dir,
            manifest,
            manifest_blake3,
            limits,
            label_limits,
            shards,
            rows,
            by_key: OnceLock::new(),
            groups,
            cache: Mutex::default(),
        })
    }

    /// The manifest: plan, tokenizer, teacher, sizes, hashes.
    pub fn manifest(&self) -> &LabelsManifest {
        &self.manifest
    }

    /// BLAKE3 of the manifest file, hexadecimal: names this dataset in checkpoints.
    pub fn manifest_blake3(&self) -> &str {
        &self.manifest_blake3
    }

    /// Number of rows; a sequence that was labelled twice counts twice.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows: never, as every shard has one.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Keys of the rows, in stored order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = SequenceKey> + '_ {
        self.rows.iter().map(|row| row.key)
    }

    /// Key of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn key(&self, row: usize) -> SequenceKey {
        self.rows[row].key
    }

    /// Tokens of a row's sequence, and how many of them are labelled; from the index, without decoding.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn token_counts(&self, row: usize) -> (usize, usize) {
        self.rows[row].counts()
    }

    /// Bytes of the index, and of the row groups that stay decoded once many rows were read, in whatever order.
    pub fn bytes_in_memory(&self) -> usize {
        const OF_ROW: usize = 28;
        let bytes =
            |GroupPlace { id: (shard, group), .. }: &GroupPlace| self.shards[*shard].decoded_bytes(*group);
        let mut groups: Vec<usize> = self.groups.iter().map(bytes).collect();
        groups.sort_unstable_by(|a, b| b.cmp(a));
        let largest = groups.first().copied().unwrap_or(0);
        let cached = groups.into_iter().take(CACHED_GROUPS).fold(0, usize::saturating_add);
        (OF_ROW * self.len()).saturating_add(cached.min(CACHED_BYTES.max(largest)))
    }

    /// Row of a sequence: the first, if it was labelled twice. Labels of equal sequences are equal.
    pub fn find(&self, key: &SequenceKey) -> Option<usize> {
        let by_key = self.by_key.get_or_init(|| {
            let mut by_key = HashMap::with_capacity(self.rows.len());
            for (index, row) in self.rows.iter().enumerate() {
                by_key.entry(row.key).or_insert(index);
            }
            by_key
        });
        by_key.get(key).copied()
    }

    /// Labels of a sequence.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`]; [`Error::Bad`] if its row group is damaged.
    pub fn get(&self, key: &SequenceKey) -> Result<SequenceLabels, Error> {
        let row =
            self.find(key).ok_or_else(|| Error::UnknownSequence { dir: self.dir.clone(), key: *key })?;
        self.read(row)
    }

    /// Labels of a row. A row alone costs the pages it lies in; whoever reads in order gets whole row groups.
    ///
    /// # Errors
    /// [`Error::Bad`] if its row group is damaged.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn read(&self, row: usize) -> Result<SequenceLabels, Error> {
        let (group, within) = self.place_of(row);
        if let Some(decoded) = self.group(group)? {
            return Ok(decoded.labels(within));
        }
        let (mut inputs, mut labelled) = (0, 0);
        for earlier in &self.rows[row - within..row] {
            let (input_tokens, labelled_tokens) = earlier.counts();
            inputs += input_tokens;
            labelled += labelled_tokens;
        }
        let (input_tokens, labelled_tokens) = self.token_counts(row);
        let place = RowPlace {
            row: within,
            key: self.key(row),
            inputs: inputs..inputs + input_tokens,
            labelled: labelled..labelled + labelled_tokens,
        };
        read_row(&self.shards[group.0], group.1, &place, &self.label_limits, &self.limits)
            .map_err(|error| error.within(quoted(&self.dir)))
    }

    /// Labels of all rows, in stored order.
    pub fn iter(&self) -> impl Iterator<Item = Result<SequenceLabels, Error>> + '_ {
        let mut group = LabelGroup::default();
        let mut decoded = None;
        (0..self.len()).map(move |row| {
            let (id, within) = self.place_of(row);
            if decoded != Some(id) {
                decoded = None;
                self.decode(id, &mut group)?;
                decoded = Some(id);
            }
            Ok(group.labels(within))
        })
    }

    /// The shards, in order.
    pub(crate) fn shards(&self) -> &[ShardReader] {
        &self.shards
    }

    /// Its row group, and its place there.
    fn place_of(&self, row: usize) -> (GroupId, usize) {
        let group = usize::try_from(self.rows[row].group).expect("32 bits fit an address");
        let GroupPlace { id, first_row } = self.groups[group];
        (id, row - first_row)
    }

    /// Number of row groups: what [`LabelDataset::decode_group`] decodes.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Rows of a row group.
    ///
    /// # Panics
    /// If there is no such row group.
    pub fn group_rows(&self, group: usize) -> Range<usize> {
        let end = self.groups.get(group + 1).map_or(self.rows.len(), |next| next.first_row);
        self.groups[group].first_row..end
    }

    /// Decodes and checks a row group into memory that is used again: the fast way through a dataset, without a copy
    /// of each row. After an error `into` is empty.
    ///
    /// # Errors
    /// [`Error::Bad`] if the row group is damaged.
    ///
    /// # Panics
    /// If there is no such row group.
    pub fn decode_group(&self, group: usize, into: &mut LabelGroup) -> Result<(), Error> {
        self.decode(self.groups[group].id, into)
    }

    /// Decodes a row group past the cache.
    pub(crate) fn decode(&self, (shard, group): GroupId, into: &mut LabelGroup) -> Result<(), Error> {
        into.read(&self.shards[shard], group, &self.label_limits, &self.limits)
            .map_err(|error| error.within(quoted(&self.dir)))
    }

    /// A row group that is in memory, or should be; none where one row alone is cheaper.
    fn group(&self, id: GroupId) -> Result<Option<Arc<LabelGroup>>, Error> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut group = LabelGroup::default();
        {
            let mut cache = cache();
            if let Some(index) = cache.groups.iter().position(|(cached, _)| *cached == id) {
                let entry = cache.groups.remove(index).expect("just found");
                let group = entry.1.clone();
                cache.groups.push_front(entry);
                return Ok(Some(group));
            }
            if !cache.recent.contains(&id) {
                cache.recent.truncate(RECENT_GROUPS - 1);
                cache.recent.push_front(id);
                return Ok(None);
            }
            // The memory of the oldest one, where nobody reads it any more.
            if cache.groups.len() >= CACHED_GROUPS {
                let oldest = cache.groups.pop_back();
                group = oldest.and_then(|(_, group)| Arc::into_inner(group)).unwrap_or_default();
            }
        }
        self.decode(id, &mut group)?;
        let group = Arc::new(group);
        let mut cache = cache();
        cache.groups.truncate(CACHED_GROUPS - 1);
        cache.groups.push_front((id, group.clone()));
        let mut bytes = 0usize;
        let fits = cache.groups.iter().take_while(|((shard, group), _)| {
            bytes = bytes.saturating_add(self.shards[*shard].decoded_bytes(*group));
            bytes <= CACHED_BYTES
        });
        let fits = fits.count().max(1);
        cache.groups.truncate(fits);
        Ok(Some(group))
    }
}

/// Room for the index of as many rows as a manifest says there are: few bytes of a shard can stand for many.
fn index_of(manifest: &Path, rows: u64) -> Result<Vec<Row>, Error> {
    let mut index = Vec::new();
    let reserved = usize::try_from(rows).is_ok_and(|rows| index.try_reserve_exact(rows).is_ok());
    if reserved { Ok(index) } else { Err(Error::bad(quoted(manifest), "rows that fit the memory", rows)) }
}

/// Keys and sizes of the rows of each row group of a shard, checked against the manifest.
fn index_shard(shard: &ShardReader, record: &ShardRecord) -> Result<Vec<Vec<RowSize>>, Error> {
    let groups = (0..shard.groups()).map(|group| row_sizes(shard, group)).collect::<Result<Vec<_>, _>>()?;
    let sum = |of: fn(&RowSize) -> usize| groups.iter().flatten().map(of).sum::<usize>();
    let found = [sum(|size| size.input_tokens), sum(|size| size.labelled_tokens)];
    let expected = [record.input_tokens, record.labelled_tokens];
    if found.map(u64::try_from) != expected.map(Ok) {
        let place = format!("shard `{}` input and labelled tokens", record.file);
        return Err(Error::bad(place, format_args!("{expected:?}"), format_args!("{found:?}")));
    }
    Ok(groups)
}

/// A number of the index.
fn narrow(what: &str, count: usize) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| Error::bad(what, "fewer than 2^32", count))
}
