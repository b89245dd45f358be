import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.ServerSocketChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.HashMap;
import java.util.Map;
import java.util.Queue;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.zip.CRC32;

/** Allocates, collects, starts threads, maps a file; answers what it has found wrong, and how often it has done what. */
public class App {
	static final Queue<String> wrong = new ConcurrentLinkedQueue<>();
	static final AtomicLong ticks = new AtomicLong(), rounds = new AtomicLong(), threads = new AtomicLong(), maps = new AtomicLong(), turns = new AtomicLong();

	record Piece(byte[] data, long sum) {}

	static long sum(byte[] data) {
		CRC32 crc = new CRC32();
		crc.update(data);
		return crc.getValue();
	}

	static void again(Callable<Void> work) {
		Thread thread = new Thread(() -> {
			try {
				while (true) work.call();
			} catch (Throwable e) {
				wrong.add(e.toString());
			}
		});
		thread.setDaemon(true);
		thread.start();
	}

	static void data() {
		Map<Integer, Piece> kept = new HashMap<>();
		Random random = new Random();
		again(() -> {
			int key = random.nextInt(1000);
			Piece old = kept.get(key);
			if (old != null && sum(old.data) != old.sum) wrong.add("data");
			byte[] data = new byte[1 + random.nextInt(20000)];
			random.nextBytes(data);
			kept.put(key, new Piece(data, sum(data)));
			if ((rounds.incrementAndGet() & 63) == 0) Thread.sleep(1);
			return null;
		});
	}

	static Void map() throws Exception {
		long n = maps.incrementAndGet();
		try (FileChannel file = FileChannel.open(Path.of("/data/map"), StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
			MappedByteBuffer bytes = file.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 16);
			for (int i = 0; i < 1 << 13; i++) bytes.putLong(i * 8, n + i);
			for (int i = 0; i < 1 << 13; i++) if (bytes.getLong(i * 8) != n + i) wrong.add("map");
		}
		Thread.sleep(5);
		return null;
	}

	static Void thread() throws Exception {
		int[] cell = new int[1];
		Thread thread = new Thread(() -> cell[0] = 7);
		thread.start();
		thread.join();
		if (cell[0] != 7) wrong.add("thread");
		threads.incrementAndGet();
		Thread.sleep(1);
		return null;
	}

	static String answer() {
		String list = wrong.isEmpty() ? "[]" : "[\"" + String.join("\",\"", wrong) + "\"]";
		return "HTTP/1.0 200 OK\r\n\r\n" + String.format("{\"wrong\":%s,\"ticks\":%d,\"rounds\":%d,\"threads\":%d,\"maps\":%d,\"turns\":%d}",
				list, ticks.get(), rounds.get(), threads.get(), maps.get(), turns.get());
	}

	public static void main(String[] args) throws Exception {
		data();
		data();
		again(App::map);
		again(App::thread);
		Object lock = new Object();
		for (int i = 0; i < 2; i++) again(() -> {
			synchronized (lock) {
				lock.notifyAll();
				lock.wait(1);
			}
			turns.incrementAndGet();
			return null;
		});
		Executors.newScheduledThreadPool(2).scheduleAtFixedRate(ticks::incrementAndGet, 0, 10, TimeUnit.MILLISECONDS);
		ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX);
		server.bind(UnixDomainSocketAddress.of("/data/socket"));
		while (true) {
			try (var connection = server.accept()) {
				connection.read(ByteBuffer.allocate(1000));
				connection.write(ByteBuffer.wrap(answer().getBytes()));
			}
		}
	}
}
