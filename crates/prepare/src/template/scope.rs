//! Where each name of a template lies, as Jinja2's `idtracking` finds it: by reading, not by running.
//!
//! A scope keeps its variables in the function around it: the template, a macro, a block that is called, a recursive
//! loop. A variable that is only read comes from an outer scope or is given; one that is assigned begins as the outer
//! one and is the scope's own.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::ast::{CallBlock, Expr, FilterBlock, For, Function, Load, Loads, LoopFilter};
use super::ast::{Name, Place, SetBlock, Stmt, StmtKind, Target, With};
use super::lexer::{SyntaxError, syntax_error};
use super::parser::unknown;
use super::walk::{children, children_mut, reads};
use super::{checks, filters};

/// A template whose names are resolved.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) body: Vec<Stmt>,
    pub(super) loads: Loads,
    pub(super) slots: usize,
}

/// Resolves the names of a template.
pub(super) fn resolve(mut body: Vec<Stmt>) -> Result<Root, SyntaxError> {
    if reads(&body, "self") {
        return syntax_error(1, "the variable `self` is not supported in chat templates here");
    }
    let mut resolver = Resolver::default();
    resolver.functions.push(FunctionScope::default());
    let scope = resolver.open(None, 0);
    resolver.analyze(scope, |symbols| body.iter().for_each(|stmt| symbols.stmt(stmt)));
    resolver.stmts(&mut body, scope)?;
    if let Some(error) = resolver.unknown {
        return Err(error);
    }
    let loads = resolver.loads(scope);
    Ok(Root { body, loads, slots: resolver.functions[0].slots.len() })
}

/// A variable: the function it lies in, and the level and name by which the scopes of that function share it.
type Ident = (usize, usize, Box<str>);

#[derive(Clone, Debug, PartialEq)]
enum Begin {
    Parameter,
    Given,
    Outer(Ident),
    Missing,
}

#[derive(Clone, Debug)]
struct Symbols {
    parent: Option<usize>,
    function: usize,
    level: usize,
    refs: BTreeMap<Box<str>, Ident>,
    begins: BTreeMap<Ident, Begin>,
    stores: BTreeSet<Box<str>>,
}

#[derive(Default)]
struct FunctionScope {
    depth: usize,
    slots: HashMap<(usize, Box<str>), usize>,
}

#[derive(Default)]
struct Resolver {
    scopes: Vec<Symbols>,
    functions: Vec<FunctionScope>,
    /// The scopes of loop filters are numbered apart: their item is not the body's.
    filters: usize,
    /// The line of the current statement.
    line: usize,
    /// Whether an unknown filter here is an error only where it is reached: in branches of a condition.
    soft: bool,
    /// The first filter or test that is not there.
    unknown: Option<SyntaxError>,
}

/// Levels from here on are those of loop filters.
const FILTER_LEVEL: usize = 1 << 32;

impl Resolver {
    /// A new scope inside of another.
    fn open(&mut self, parent: Option<usize>, function: usize) -> usize {
        let level = parent.map_or(0, |parent| self.scopes[parent].level + 1);
        self.scopes.push(Symbols {
            parent,
            function,
            level,
            refs: BTreeMap::new(),
            begins: BTreeMap::new(),
            stores: BTreeSet::new(),
        });
        self.scopes.len() - 1
    }

    fn open_function(&mut self, parent: usize) -> (usize, usize) {
        let depth = self.functions[self.scopes[parent].function].depth + 1;
        self.functions.push(FunctionScope { depth, slots: HashMap::new() });
        let function = self.functions.len() - 1;
        (self.open(Some(parent), function), function)
    }

    /// Reads what a scope assigns and reads.
    fn analyze(&mut self, scope: usize, read: impl FnOnce(&mut Reader<'_>)) {
        let symbols = self.scopes[scope].clone();
        let mut reader = Reader { scopes: &self.scopes, symbols };
        read(&mut reader);
        self.scopes[scope] = reader.symbols;
    }

    fn slot(&mut self, (function, level, name): &Ident) -> usize {
        let slots = &mut self.functions[*function].slots;
        let next = slots.len();
        *slots.entry((*level, name.clone())).or_insert(next)
    }

    fn place(&mut self, ident: &Ident, from: usize) -> Place {
        let up = self.functions[from].depth - self.functions[ident.0].depth;
        Place { up, slot: self.slot(ident) }
    }

    /// What the scope does when it is entered.
    fn loads(&mut self, scope: usize) -> Loads {
        let symbols = self.scopes[scope].clone();
        let mut loads = Vec::new();
        for (ident, begin) in &symbols.begins {
            let slot = self.slot(ident);
            match begin {
                Begin::Parameter => {}
                Begin::Given => loads.push(Load::Given(slot, ident.2.clone())),
                Begin::Outer(outer) => loads.push(Load::Outer(slot, self.place(outer, symbols.function))),
                Begin::Missing => loads.push(Load::Missing(slot)),
            }
        }
        loads
    }

    fn name(&mut self, name: &mut Name, scope: usize) {
        if find_ref(&self.scopes, scope, &name.name).is_none() {
            self.analyze(scope, |symbols| symbols.load(&name.name));
        }
        let ident = find_ref(&self.scopes, scope, &name.name).expect("loaded above").clone();
        name.place = self.place(&ident, self.scopes[scope].function);
    }

    fn stmts(&mut self, stmts: &mut [Stmt], scope: usize) -> Result<(), SyntaxError> {
        stmts.iter_mut().try_for_each(|stmt| self.stmt(stmt, scope))
    }

    fn stmt(&mut self, stmt: &mut Stmt, scope: usize) -> Result<(), SyntaxError> {
        self.line = stmt.line;
        let is_scope = !matches!(stmt.kind, StmtKind::Print(_) | StmtKind::Set(..) | StmtKind::If(..));
        let soft = self.soft;
        self.soft &= !is_scope;
        let result = self.stmt_of(stmt, scope);
        self.soft = soft;
        result
    }

    fn stmt_of(&mut self, stmt: &mut Stmt, scope: usize) -> Result<(), SyntaxError> {
        match &mut stmt.kind {
            StmtKind::Data(_) | StmtKind::Break | StmtKind::Continue => Ok(()),
            StmtKind::Print(expr) => {
                self.expr(expr, scope);
                Ok(())
            }
            StmtKind::If(branches, otherwise) => {
                self.soft = true;
                for (test, body) in branches {
                    self.expr(test, scope);
                    self.stmts(body, scope)?;
                }
                self.stmts(otherwise, scope)
            }
            StmtKind::For(for_loop) => self.for_loop(for_loop, scope),
            StmtKind::Set(target, value) => {
                self.expr(value, scope);
                self.target(target, scope);
                Ok(())
            }
            StmtKind::SetBlock(block) => self.set_block(block, scope),
            StmtKind::With(with) => self.with(with, scope),
            StmtKind::FilterBlock(block) => self.filter_block(block, scope),
            StmtKind::Macro(name, function) => {
                self.function(function, scope, stmt.line)?;
                self.name(name, scope);
                Ok(())
            }
            StmtKind::Call(block) => {
                let CallBlock { call, body } = &mut **block;
                self.function(body, scope, stmt.line)?;
                self.expr(call, scope);
                Ok(())
            }
            StmtKind::Generation(function) => self.function(function, scope, stmt.line),
        }
    }

    fn for_loop(&mut self, node: &mut For, scope: usize) -> Result<(), SyntaxError> {
        self.expr(&mut node.items, scope);
        let outer_function = self.scopes[scope].function;
        let (body_scope, function) = if node.recursive {
            self.open_function(scope)
        } else {
            (self.open(Some(scope), outer_function), outer_function)
        };
        let reads_loop = node.recursive || reads(&node.body, "loop");
        if reads_loop {
            self.analyze(body_scope, |symbols| symbols.parameter("loop"));
            let ident = (function, self.scopes[body_scope].level, "loop".into());
            node.loop_slot = Some(self.slot(&ident));
        }
        let For { target, body, otherwise, filter, .. } = node;
        self.analyze(body_scope, |symbols| {
            symbols.parameters(target);
            body.iter().for_each(|stmt| symbols.stmt(stmt));
        });
        if let Some(LoopFilter { target, test, loads }) = filter {
            let filter_scope = self.open(Some(scope), function);
            self.filters += 1;
            self.scopes[filter_scope].level += FILTER_LEVEL * self.filters;
            self.analyze(filter_scope, |symbols| {
                symbols.parameters(target);
                symbols.expr(test);
            });
            self.target(target, filter_scope);
            self.expr(test, filter_scope);
            *loads = self.loads(filter_scope);
        }
        self.target(target, body_scope);
        self.stmts(body, body_scope)?;
        node.loads = self.loads(body_scope);
        if !otherwise.is_empty() {
            let else_scope = self.open(Some(scope), function);
            self.analyze(else_scope, |symbols| otherwise.iter().for_each(|stmt| symbols.stmt(stmt)));
            self.stmts(otherwise, else_scope)?;
            node.otherwise_loads = self.loads(else_scope);
        }
        node.slots = self.functions[function].slots.len();
        Ok(())
    }

    fn set_block(&mut self, block: &mut SetBlock, scope: usize) -> Result<(), SyntaxError> {
        let inner = self.open(Some(scope), self.scopes[scope].function);
        let SetBlock { target, filter, body, loads } = block;
        self.analyze(inner, |symbols| body.iter().for_each(|stmt| symbols.stmt(stmt)));
        self.stmts(body, inner)?;
        if let Some(filter) = filter {
            self.expr(filter, inner);
        }
        self.target(target, scope);
        *loads = self.loads(inner);
        Ok(())
    }

    fn with(&mut self, with: &mut With, scope: usize) -> Result<(), SyntaxError> {
        let inner = self.open(Some(scope), self.scopes[scope].function);
        let With { assignments, body, loads } = with;
        self.analyze(inner, |symbols| {
            assignments.iter().for_each(|(target, _)| symbols.parameters(target));
            body.iter().for_each(|stmt| symbols.stmt(stmt));
        });
        for (target, value) in assignments {
            self.target(target, inner);
            self.expr(value, scope);
        }
        self.stmts(body, inner)?;
        *loads = self.loads(inner);
        Ok(())
    }

    fn filter_block(&mut self, block: &mut FilterBlock, scope: usize) -> Result<(), SyntaxError> {
        let inner = self.open(Some(scope), self.scopes[scope].function);
        let FilterBlock { filter, body, loads } = block;
        self.analyze(inner, |symbols| {
            body.iter().for_each(|stmt| symbols.stmt(stmt));
            symbols.expr(filter);
        });
        self.stmts(body, inner)?;
        self.expr(filter, inner);
        *loads = self.loads(inner);
        Ok(())
    }

    fn function(&mut self, node: &mut Function, scope: usize, line: usize) -> Result<(), SyntaxError> {
        let (inner, function) = self.open_function(scope);
        let explicit = |name: &str| node.parameters.iter().position(|parameter| &*parameter.name == name);
        if reads(&node.body, "caller")
            && let Some(place) = explicit("caller")
            && place + node.defaults.len() < node.parameters.len()
        {
            let problem = "expected the special argument `caller` to be left out or to have a default";
            return Err(SyntaxError { line, problem: problem.into() });
        }
        let level = self.scopes[inner].level;
        let mut special = [None, None, None];
        for (special, name) in special.iter_mut().zip(["caller", "kwargs", "varargs"]) {
            if explicit(name).is_none() && reads(&node.body, name) {
                self.analyze(inner, |symbols| symbols.parameter(name));
                *special = Some(self.slot(&(function, level, name.into())));
            }
        }
        [node.caller, node.kwargs, node.varargs] = special;
        self.analyze(inner, |symbols| {
            node.parameters.iter().for_each(|parameter| symbols.parameter(&parameter.name));
            node.defaults.iter().for_each(|default| symbols.expr(default));
            node.body.iter().for_each(|stmt| symbols.stmt(stmt));
        });
        for parameter in &mut node.parameters {
            self.name(parameter, inner);
        }
        for default in &mut node.defaults {
            self.expr(default, inner);
        }
        self.stmts(&mut node.body, inner)?;
        node.loads = self.loads(inner);
        node.slots = self.functions[function].slots.len();
        Ok(())
    }

    fn target(&mut self, target: &mut Target, scope: usize) {
        match target {
            Target::Name(name) | Target::Attribute(name, _) => self.name(name, scope),
            Target::Tuple(targets) => targets.iter_mut().for_each(|target| self.target(target, scope)),
        }
    }

    fn expr(&mut self, expr: &mut Expr, scope: usize) {
        let soft = self.soft;
        match expr {
            Expr::Name(name) => return self.name(name, scope),
            Expr::Condition { .. } => self.soft = true,
            Expr::Filter(filter) => self.check_known("filter", &filter.name, filters::known(&filter.name)),
            Expr::Test(test) => self.check_known("test", &test.name, checks::known(&test.name)),
            _ => {}
        }
        children_mut(expr, &mut |child| self.expr(child, scope));
        self.soft = soft;
    }

    fn check_known(&mut self, kind: &str, name: &str, known: bool) {
        if !known && !self.soft {
            self.unknown.get_or_insert_with(|| SyntaxError { line: self.line, problem: unknown(kind, name) });
        }
    }
}

fn find_ref<'a>(scopes: &'a [Symbols], scope: usize, name: &str) -> Option<&'a Ident> {
    let symbols = &scopes[scope];
    symbols.refs.get(name).or_else(|| find_ref(scopes, symbols.parent?, name))
}

/// Reads what one scope assigns and reads; inner scopes are read when their turn comes.
struct Reader<'a> {
    scopes: &'a [Symbols],
    symbols: Symbols,
}

impl Reader<'_> {
    fn outer(&self, name: &str) -> Option<&Ident> {
        find_ref(self.scopes, self.symbols.parent?, name)
    }

    fn define(&mut self, name: &str, begin: Begin) {
        let ident: Ident = (self.symbols.function, self.symbols.level, name.into());
        self.symbols.refs.insert(name.into(), ident.clone());
        self.symbols.begins.insert(ident, begin);
    }

    fn load(&mut self, name: &str) {
        if !self.symbols.refs.contains_key(name) && self.outer(name).is_none() {
            self.define(name, Begin::Given);
        }
    }

    fn parameter(&mut self, name: &str) {
        self.symbols.stores.insert(name.into());
        self.define(name, Begin::Parameter);
    }

    fn parameters(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.parameter(&name.name),
            Target::Attribute(name, _) => self.load(&name.name),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.parameters(target)),
        }
    }

    fn store(&mut self, name: &str) {
        self.symbols.stores.insert(name.into());
        if self.symbols.refs.contains_key(name) {
            return;
        }
        let begin = self.outer(name).map_or(Begin::Missing, |outer| Begin::Outer(outer.clone()));
        self.define(name, begin);
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.store(&name.name),
            Target::Attribute(name, _) => self.load(&name.name),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
        }
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Name(name) => self.load(&name.name),
            other => children(other, &mut |child| self.expr(child)),
        }
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match &stmt.kind {
            StmtKind::Data(_) | StmtKind::Break | StmtKind::Continue | StmtKind::Generation(_) => {}
            StmtKind::Print(expr) => self.expr(expr),
            StmtKind::If(branches, otherwise) => self.condition(&branches[0], &branches[1..], otherwise),
            StmtKind::For(node) => self.expr(&node.items),
            StmtKind::Set(target, value) => {
                self.expr(value);
                self.target(target);
            }
            StmtKind::SetBlock(block) => self.target(&block.target),
            StmtKind::With(with) => with.assignments.iter().for_each(|(_, value)| self.expr(value)),
            StmtKind::FilterBlock(block) => self.expr(&block.filter),
            StmtKind::Macro(name, _) => self.store(&name.name),
            StmtKind::Call(block) => self.expr(&block.call),
        }
    }

    /// What is assigned in some branches only begins as it was outside. Jinja2 takes each `elif` for a condition of its
    /// own.
    fn condition(
        &mut self,
        (test, body): &(Expr, Vec<Stmt>),
        others: &[(Expr, Vec<Stmt>)],
        otherwise: &[Stmt],
    ) {
        self.expr(test);
        let before = self.symbols.clone();
        body.iter().for_each(|stmt| self.stmt(stmt));
        let mut read = vec![std::mem::replace(&mut self.symbols, before.clone())];
        others.iter().for_each(|branch| self.condition(branch, &[], &[]));
        read.push(std::mem::replace(&mut self.symbols, before.clone()));
        otherwise.iter().for_each(|stmt| self.stmt(stmt));
        read.push(std::mem::replace(&mut self.symbols, before.clone()));
        for branch in &read {
            self.symbols.refs.extend(branch.refs.clone());
            self.symbols.begins.extend(branch.begins.clone());
            self.symbols.stores.extend(branch.stores.iter().cloned());
        }
        let stores: BTreeSet<Box<str>> =
            read.iter().flat_map(|branch| branch.stores.iter().cloned()).collect();
        for name in stores.difference(&before.stores) {
            let begin = self.outer(name).map_or(Begin::Given, |outer| Begin::Outer(outer.clone()));
            if let Some(ident) = self.symbols.refs.get(name) {
                self.symbols.begins.insert(ident.clone(), begin);
            }
        }
    }
}
