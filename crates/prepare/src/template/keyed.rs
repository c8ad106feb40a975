//! Jinja2's filters that compare items by a key.

use std::rc::Rc;

use super::ast::Binary;
use super::calls::Args;
use super::filters::{Getter, hint, is_less, is_true, lazily, sorted};
use super::iterate;
use super::limits::{Outcome, raised, type_error};
use super::operators::{binary, equal};
use super::render::Renderer;
use super::value::{Key, Seq, Undefined, Val};

impl<'t> Renderer<'t, '_> {
    /// Filters that compare items by a key.
    pub(super) fn keyed(&mut self, name: &str, value: Val<'t>, args: Args<'t>) -> Outcome<Val<'t>> {
        match name {
            "dictsort" => self.dictsort(&value, args),
            "sum" => {
                let [attribute, start] = args.bind("sum", ["attribute", "start"], 0)?;
                let getter = self.getter(attribute.as_ref(), true)?;
                let mut sum = start.unwrap_or(Val::Int(0));
                if sum.as_str().is_some() {
                    return type_error("sum() can't sum strings");
                }
                for item in iterate::list(&value, self.meter)? {
                    let item = self.key(&item, &getter)?;
                    sum = binary(Binary::Add, &sum, &item, self.meter)?;
                }
                Ok(sum)
            }
            "groupby" => {
                let names = ["attribute", "default", "case_sensitive"];
                let [attribute, default, case_sensitive] = args.bind("groupby", names, 1)?;
                let mut getter = self.getter(attribute.as_ref(), is_true(case_sensitive.as_ref()))?;
                getter.default = default.filter(|default| !matches!(default, Val::None));
                self.groupby(&value, getter)
            }
            "sort" => {
                let [reverse, case_sensitive, attribute] =
                    args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
                self.sort(
                    &value,
                    is_true(reverse.as_ref()),
                    is_true(case_sensitive.as_ref()),
                    attribute.as_ref(),
                )
            }
            _ => {
                let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
                let getter = self.getter(attribute.as_ref(), is_true(case_sensitive.as_ref()))?;
                if name == "unique" {
                    self.unique(&value, &getter)
                } else {
                    self.extreme(name, &value, &getter)
                }
            }
        }
    }

    fn dictsort(&mut self, value: &Val<'t>, args: Args<'t>) -> Outcome<Val<'t>> {
        let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
        let place = match by.as_ref().map(|by| by.as_str()) {
            None | Some(Some("key")) => 0,
            Some(Some("value")) => 1,
            _ => return raised("You can only sort by either \"key\" or \"value\""),
        };
        let Val::Dict(dict) = value else {
            return type_error(format!("'{}' object has no attribute 'items'", value.type_name()));
        };
        let getter = Getter { path: Vec::new(), lower: !is_true(case_sensitive.as_ref()), default: None };
        let mut entries = Vec::new();
        for (key, value) in &dict.entries {
            let by = self.key([key, value][place], &getter)?;
            entries.push((by, Val::tuple(vec![key.clone(), value.clone()])?));
        }
        Val::list(self.by_keys(entries, is_true(reverse.as_ref()))?)
    }

    /// What belongs to each key, sorted by it. In reverse what is equal keeps its order too.
    fn by_keys(&mut self, mut entries: Vec<(Val<'t>, Val<'t>)>, reverse: bool) -> Outcome<Vec<Val<'t>>> {
        let meter = self.meter;
        if reverse {
            entries.reverse();
        }
        let mut entries = sorted(entries, &mut |left, right| is_less(&left.0, &right.0, meter))?;
        if reverse {
            entries.reverse();
        }
        Ok(entries.into_iter().map(|(_, item)| item).collect())
    }

    fn sort(
        &mut self,
        value: &Val<'t>,
        reverse: bool,
        case_sensitive: bool,
        attribute: Option<&Val<'t>>,
    ) -> Outcome<Val<'t>> {
        let attributes: Vec<Option<Val<'t>>> = match attribute {
            Some(Val::Str(paths) | Val::Markup(paths)) => {
                paths.split(',').map(|path| Some(Val::text(path))).collect()
            }
            other => vec![other.cloned()],
        };
        let getters: Outcome<Vec<Getter<'t>>> =
            attributes.iter().map(|attribute| self.getter(attribute.as_ref(), case_sensitive)).collect();
        let getters = getters?;
        let mut entries = Vec::new();
        for item in iterate::list(value, self.meter)? {
            let keys: Outcome<Vec<Val<'t>>> = getters.iter().map(|getter| self.key(&item, getter)).collect();
            entries.push((Val::list(keys?)?, item));
        }
        Val::list(self.by_keys(entries, reverse)?)
    }

    #[expect(clippy::mutable_key_type, reason = "what is no text, number, None or tuple of these is no key")]
    fn unique(&mut self, value: &Val<'t>, getter: &Getter<'t>) -> Outcome<Val<'t>> {
        let mut seen = std::collections::HashSet::new();
        let made = self.mapped(value, |renderer, item| {
            let key = renderer.key(item, getter)?;
            if key.is_undefined() {
                return super::limits::refused("`unique` of undefined values");
            }
            key.check_hashable(renderer.meter)?;
            Ok(if seen.insert(Key(key)) { item.clone() } else { hint("not unique") })
        });
        let is_kept =
            |item: &Outcome<Val<'t>>| !matches!(item, Ok(Val::Undefined(Undefined::Hint("not unique"))));
        lazily(made.map(|made| made.into_iter().filter(is_kept).collect()))
    }

    fn extreme(&mut self, name: &str, value: &Val<'t>, getter: &Getter<'t>) -> Outcome<Val<'t>> {
        let mut best: Option<(Val<'t>, Val<'t>)> = None;
        for item in iterate::list(value, self.meter)? {
            let key = self.key(&item, getter)?;
            let better = match &best {
                None => true,
                Some((other, _)) if name == "min" => is_less(&key, other, self.meter)?,
                Some((other, _)) => is_less(other, &key, self.meter)?,
            };
            if better {
                best = Some((key, item));
            }
        }
        Ok(best.map_or_else(|| hint("No aggregated item, sequence was empty."), |(_, item)| item))
    }

    fn groupby(&mut self, value: &Val<'t>, mut getter: Getter<'t>) -> Outcome<Val<'t>> {
        let mut entries = Vec::new();
        for item in iterate::list(value, self.meter)? {
            let key = self.key(&item, &getter)?;
            entries.push((key.clone(), Val::tuple(vec![key, item])?));
        }
        let mut groups: Vec<(Val<'t>, Vec<Val<'t>>)> = Vec::new();
        for pair in self.by_keys(entries, false)? {
            let [key, item] = pair.items().expect("a pair").to_vec().try_into().expect("a pair");
            match groups.last_mut() {
                Some((last, items)) if equal(last, &key, self.meter)? => items.push(item),
                _ => groups.push((key, vec![item])),
            }
        }
        getter.lower = false;
        let mut found = Vec::new();
        for (_, items) in groups {
            let key = self.key(&items[0], &getter)?;
            found.push(Val::Tuple(Rc::new(Seq::group(key, Val::list(items)?)?)));
        }
        Val::list(found)
    }
}
