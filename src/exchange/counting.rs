//! Counting tokens off the async threads; where that fails, by bytes.

/// What is counted, else what is guessed: an answer whose tokens cannot be counted is not given away.
pub(super) async fn count<T: Send + 'static>(
    counting: impl FnOnce() -> T + Send + 'static,
    guess: impl FnOnce() -> T,
) -> T {
    match tokio::task::spawn_blocking(counting).await {
        Ok(counted) => counted,
        // The tokenizer may give up by a panic.
        Err(error) => {
            tracing::error!(%error, "tokens cannot be counted; they are guessed by bytes");
            guess()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_counted_is_guessed() {
        assert_eq!(count(|| 7, || 9).await, 7);
        assert_eq!(count(|| panic!("the tokenizer gives up"), || 9).await, 9);
    }
}
