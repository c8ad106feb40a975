//! What the formats speak of: keys, sequences, labels, tokenizers, limits and errors. No file is opened here.

mod error;
mod example;
pub(crate) mod json;
mod key;
mod labels;
mod limits;
mod own_tokenizer;
mod selection;
mod sequence;
mod split;
mod tokenizer;
mod validate;
mod view;
mod visible;

pub use error::{Bad, Error};
pub use example::Example;
pub use json::differences;
pub use key::SequenceKey;
pub use labels::{LabelLimits, SequenceLabels};
pub use limits::ReadLimits;
pub use own_tokenizer::OwnTokenizer;
pub use selection::{OptionalColumn, Selection};
pub use sequence::Sequence;
pub use split::Split;
pub use tokenizer::Tokenizer;
pub use view::{LabelsView, PositionEntries};
pub use visible::{visible, visible_line};

pub(crate) use error::{HINT_DAMAGED, quoted, some_of};
pub(crate) use sequence::tokens_at;
pub(crate) use validate::{Validator, check_sequence};
