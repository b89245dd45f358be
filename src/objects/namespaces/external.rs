//! What a caller declares external: CRIU's `--external` words.

use crate::base::{Error, Result};
use crate::sys::ns::Kind;

/// `KIND[KEY]:VALUE` taken apart; the value may be missing.
fn parts<'a>(word: &'a str, kind: &str) -> Option<(&'a str, Option<&'a str>)> {
    let rest = word.strip_prefix(kind)?.strip_prefix('[')?;
    let (key, tail) = rest.split_once(']')?;
    match tail.strip_prefix(':') {
        Some(value) => Some((key, Some(value))),
        None if tail.is_empty() => Some((key, None)),
        None => None,
    }
}

/// All declared mounts: those of `--ext-mount-map` and `--external mnt[..]`.
///
/// # Errors
/// Detection by guess (`mnt[]`, `auto`), which is not done: what leaves the
/// container is named by the caller.
pub(super) fn mounts(
    ext_mnt: &[(String, String)],
    external: &[String],
) -> Result<Vec<(String, String)>> {
    let mut all = ext_mnt.to_vec();
    for word in external {
        if let Some((key, value)) = parts(word, "mnt") {
            all.push((key.to_owned(), value.unwrap_or_default().to_owned()));
        }
    }
    for (key, _) in &all {
        if key.is_empty() || key == "auto" {
            return Err(Error::caller(
                "external mounts",
                "finding them by guess (mnt[] or auto) is not supported: name each by its mountpoint",
            ));
        }
    }
    Ok(all)
}

/// The key under which the caller provides the namespace of this inode.
pub(super) fn of_namespace(kind: Kind, inode: u64, external: &[String]) -> Option<String> {
    external
        .iter()
        .filter_map(|w| parts(w, kind.name()))
        .find(|(key, _)| key.parse() == Ok(inode))
        .and_then(|(_, value)| value.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_apart_and_guessing_is_refused() {
        let ext = vec![
            "mnt[/a]:b".to_owned(),
            "net[42]:extRootNetNS".to_owned(),
            "mnt[/c]".to_owned(),
        ];
        let m = mounts(&[("/x".into(), "/y".into())], &ext).unwrap();
        let want = [("/x", "/y"), ("/a", "b"), ("/c", "")];
        assert_eq!(m, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(
            of_namespace(Kind::Net, 42, &ext).as_deref(),
            Some("extRootNetNS")
        );
        assert_eq!(of_namespace(Kind::Net, 43, &ext), None);
        assert!(mounts(&[], &["mnt[]:m".to_owned()]).is_err());
    }
}
