use super::*;
use tokio::net::TcpListener;

fn run<F: Future>(f: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(f)
}

struct Pair {
    listener: TcpListener,
    at: SocketAddr,
    token: Token,
    identity: Option<Identity>,
}

impl Pair {
    async fn new(plain: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let identity = (!plain).then(|| Identity::fresh().unwrap());
        let token = Token::fresh(identity.as_ref().map(|i| &i.certificate[..])).unwrap();
        Self {
            listener,
            at,
            token,
            identity,
        }
    }

    async fn accept(&self) -> Result<Opened> {
        let (tcp, peer) = self.listener.accept().await.unwrap();
        accept(
            tcp,
            peer,
            &self.token,
            self.identity.as_ref(),
            |_, _| Ok(()),
        )
        .await
    }
}

#[test]
fn a_lane_opens_with_the_secret_and_carries_frames_with_and_without_tls() {
    for plain in [false, true] {
        run(async {
            let p = Pair::new(plain).await;
            let (src, dst) = tokio::join!(open(p.at, &p.token, Lane::Bulk, 3), p.accept());
            let (mut src, mut dst) = (src.unwrap(), dst.unwrap());
            assert_eq!((dst.lane, dst.epoch), (Lane::Bulk, 3));
            let body = vec![7u8; 300_000];
            let body2 = body.clone();
            let send = src.writer.send_built(Kind::Pages, move |b| {
                b.extend_from_slice(&body2);
                Ok(())
            });
            let (sent, got) = tokio::join!(send, dst.reader.expect(HANDSHAKE));
            sent.unwrap();
            assert_eq!(got.unwrap().body, body);
            src.writer.close().await.unwrap();
            assert!(dst.reader.next().await.unwrap().is_none());
        });
    }
}

#[test]
fn whoever_has_proved_nothing_makes_nobody_wait_for_or_make_room_for_more_than_a_kilobyte() {
    run(async {
        let p = Pair::new(true).await;
        let body = vec![0; 1 << 20];
        let mut b = Builder::new(Kind::Offer, Vec::new());
        b.buf().extend_from_slice(&body);
        let frame = b.finish().unwrap();
        let stranger = async {
            let mut s = TcpStream::connect(p.at).await.unwrap();
            // The header only: whoever believes it waits for the rest.
            s.write_all(&frame[..HEADER]).await.unwrap();
            s
        };
        let (_open, taken) = tokio::join!(stranger, p.accept());
        let e = taken.unwrap_err().to_string();
        assert!(e.contains("1048576 bytes, unproved"), "{e}");
    });
}

#[test]
fn a_wrong_secret_is_refused_by_both_ends() {
    run(async {
        let p = Pair::new(true).await;
        let mut wrong = Token::fresh(None).unwrap();
        wrong.session = p.token.session;
        let (src, dst) = tokio::join!(open(p.at, &wrong, Lane::Control, 1), p.accept());
        let e = dst.unwrap_err().to_string();
        assert!(e.contains("does not know this session's secret"), "{e}");
        let e = src.unwrap_err().to_string();
        assert!(e.contains("secret"), "{e}");
    });
}

#[test]
fn a_receiver_with_another_certificate_is_not_talked_to() {
    run(async {
        let p = Pair::new(false).await;
        let other = Identity::fresh().unwrap();
        let token = Token::fresh(Some(&other.certificate)).unwrap();
        let (src, dst) = tokio::join!(open(p.at, &token, Lane::Control, 1), p.accept());
        assert!(dst.is_err());
        assert!(src.unwrap_err().to_string().contains("TLS"));
    });
}

#[test]
fn a_plain_source_gets_nothing_from_a_tls_receiver() {
    run(async {
        let p = Pair::new(false).await;
        let mut token = p.token.clone();
        token.fingerprint = None;
        let (src, dst) = tokio::join!(open(p.at, &token, Lane::Control, 1), p.accept());
        assert!(src.is_err());
        assert!(dst.is_err());
    });
}

#[test]
fn a_replayed_handshake_is_refused() {
    run(async {
        let p = Pair::new(true).await;
        // What a source said once, word for word.
        let nonce = [1u8; 32];
        let hello = Hello {
            versions: vec![u32::from(super::frame::VERSION)],
            session: p.token.session.to_vec(),
            lane: 1,
            epoch: 1,
            nonce: nonce.to_vec(),
            page_size: PAGE_SIZE,
        };
        let old = p.token.lane(Lane::Control, 1, &nonce, &[9u8; 32], &[]);
        let proof = Proof {
            mac: old.make(Side::Source),
        };
        let replay = async {
            let mut s = TcpStream::connect(p.at).await.unwrap();
            s.write_all(&message::frame(Kind::Hello, &hello).unwrap())
                .await
                .unwrap();
            s.write_all(&message::frame(Kind::Proof, &proof).unwrap())
                .await
                .unwrap();
            let mut all = Vec::new();
            let _ = s.read_to_end(&mut all).await;
        };
        let (dst, ()) = tokio::join!(p.accept(), replay);
        assert!(dst.unwrap_err().to_string().contains("secret"));
    });
}

#[test]
fn a_stranger_with_other_bytes_is_refused_at_once() {
    run(async {
        let p = Pair::new(true).await;
        let stranger = async {
            let mut s = TcpStream::connect(p.at).await.unwrap();
            s.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .unwrap();
            let mut all = Vec::new();
            let _ = s.read_to_end(&mut all).await;
        };
        let (dst, ()) = tokio::join!(p.accept(), stranger);
        assert!(dst.unwrap_err().to_string().contains("magic"));
    });
}

#[test]
fn a_source_without_a_common_version_is_told_so() {
    run(async {
        let p = Pair::new(true).await;
        let hello = Hello {
            versions: vec![77],
            session: p.token.session.to_vec(),
            lane: 1,
            epoch: 1,
            nonce: vec![0; 32],
            page_size: PAGE_SIZE,
        };
        let old = async {
            let tcp = TcpStream::connect(p.at).await.unwrap();
            let (mut r, mut w) = halves(Box::new(tcp), p.at, usize::MAX);
            w.send(Kind::Hello, &hello).await.unwrap();
            told(&r.expect(HANDSHAKE).await.unwrap()).to_string()
        };
        let (dst, said) = tokio::join!(p.accept(), old);
        assert!(dst.unwrap_err().to_string().contains("no common version"));
        assert!(said.contains("no common version"), "{said}");
    });
}

#[test]
fn a_connection_cut_inside_a_frame_is_an_error_and_between_frames_the_end() {
    run(async {
        let p = Pair::new(true).await;
        let cut = async {
            let mut s = TcpStream::connect(p.at).await.unwrap();
            let f = frame::encode(Kind::Ready, b"half of this").unwrap();
            s.write_all(&f[..20]).await.unwrap();
        };
        let take = async {
            let (tcp, peer) = p.listener.accept().await.unwrap();
            halves(Box::new(tcp), peer, usize::MAX).0.next().await
        };
        let (r, ()) = tokio::join!(take, cut);
        assert!(r.unwrap_err().to_string().contains("receive Ready"));
    });
}
