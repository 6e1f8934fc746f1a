// Reads the stream of streampose and prints a line for each person.
//
//     apt install libzmq3-dev libmsgpack-dev
//     g++ -std=c++17 -O2 subscriber.cpp -lzmq -lmsgpackc -o subscriber
//     ./subscriber [tcp://127.0.0.1:5555] [number of frames, -1 for all] [tablet.key]
//
// docs/protocol.md says what the messages are.

#include <msgpack.h>
#include <zmq.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

// One header: a msgpack map whose fields are found by name.
class Header {
public:
    explicit Header(std::string_view bytes) {
        msgpack_unpacked_init(&unpacked_);
        if (msgpack_unpack_next(&unpacked_, bytes.data(), bytes.size(), nullptr) != MSGPACK_UNPACK_SUCCESS ||
            unpacked_.data.type != MSGPACK_OBJECT_MAP) {
            msgpack_unpacked_destroy(&unpacked_);
            throw std::runtime_error("a header that is not a msgpack map");
        }
    }
    Header(const Header&) = delete;
    Header& operator=(const Header&) = delete;
    ~Header() { msgpack_unpacked_destroy(&unpacked_); }

    const msgpack_object& operator[](std::string_view name) const { return find(unpacked_.data.via.map, name); }

    static const msgpack_object& find(const msgpack_object_map& map, std::string_view name) {
        for (uint32_t i = 0; i < map.size; ++i) {
            const auto& key = map.ptr[i].key.via.str;
            if (map.ptr[i].key.type == MSGPACK_OBJECT_STR && std::string_view(key.ptr, key.size) == name) {
                return map.ptr[i].val;
            }
        }
        throw std::runtime_error("a header without " + std::string(name));
    }

private:
    msgpack_unpacked unpacked_;
};

std::string text(const msgpack_object& value) {
    if (value.type != MSGPACK_OBJECT_STR) throw std::runtime_error("a field that is not text");
    return {value.via.str.ptr, value.via.str.size};
}

int64_t integer(const msgpack_object& value) {
    if (value.type != MSGPACK_OBJECT_POSITIVE_INTEGER && value.type != MSGPACK_OBJECT_NEGATIVE_INTEGER) {
        throw std::runtime_error("a field that is not an integer");
    }
    return value.via.i64;
}

// Little-endian float32, whatever this machine is.
float number(std::string_view blob, size_t index) {
    const auto* byte = reinterpret_cast<const unsigned char*>(blob.data()) + 4 * index;
    const uint32_t bits = byte[0] | byte[1] << 8 | byte[2] << 16 | static_cast<uint32_t>(byte[3]) << 24;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The parts of the next message.
std::vector<std::string> receive(void* socket) {
    std::vector<std::string> parts;
    int more = 1;
    while (more) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, socket, 0) < 0) throw std::runtime_error(zmq_strerror(zmq_errno()));
        parts.emplace_back(static_cast<char*>(zmq_msg_data(&part)), zmq_msg_size(&part));
        more = zmq_msg_more(&part);
        zmq_msg_close(&part);
    }
    return parts;
}

// A socket that tells why there is no connection.
void* watch(void* context, void* socket) {
    const int failures = ZMQ_EVENT_CONNECT_RETRIED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                         ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
    void* events = zmq_socket(context, ZMQ_PAIR);
    if (zmq_socket_monitor(socket, "inproc://events", failures) != 0 || zmq_connect(events, "inproc://events") != 0) {
        throw std::runtime_error(zmq_strerror(zmq_errno()));
    }
    return events;
}

// Says once of each kind of failure what it means.
void tell(const std::vector<std::string>& event, std::set<uint16_t>& told) {
    uint16_t kind;
    std::memcpy(&kind, event.at(0).data(), sizeof kind);
    if (!told.insert(kind).second) return;
    const char* what = kind == ZMQ_EVENT_CONNECT_RETRIED            ? "nobody answers there"
                       : kind == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH    ? "the publisher does not let this key in"
                       : kind == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL ? "the publisher wants a key, or none"
                                                                    : "the key is wrong, or is for another publisher";
    std::fprintf(stderr, "no connection: %s; trying again\n", what);
}

// Encrypts with a key file: lines such as public = "40 characters".
void use_key(void* socket, const char* path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error(std::string("cannot read ") + path);
    const std::map<std::string, int> options{
        {"public", ZMQ_CURVE_PUBLICKEY}, {"secret", ZMQ_CURVE_SECRETKEY}, {"publisher", ZMQ_CURVE_SERVERKEY}};
    size_t found = 0;
    for (std::string line; std::getline(file, line);) {
        const auto option = options.find(line.substr(0, line.find(' ')));
        const auto first = line.find('"'), last = line.rfind('"');
        if (option == options.end() || last != first + 41) continue;
        const auto key = line.substr(first + 1, 40);
        if (zmq_setsockopt(socket, option->second, key.c_str(), 41) != 0) {
            throw std::runtime_error(zmq_strerror(zmq_errno()));
        }
        ++found;
    }
    if (found != options.size()) throw std::runtime_error(std::string(path) + " is no key file");
}

void print_people(const Header& header, std::string_view blob) {
    const auto& people = header["people"];
    if (people.type != MSGPACK_OBJECT_ARRAY) throw std::runtime_error("people that are no list");
    const size_t count = people.via.array.size;
    if (count == 0) return;
    const size_t values = blob.size() / 4;
    if (blob.size() % 4 || values < 7 * count || (values - 4 * count) % (3 * count)) {
        throw std::runtime_error("a blob of the wrong length");
    }
    const size_t joints = (values - 4 * count) / (3 * count);
    for (size_t person = 0; person < count; ++person) {
        const auto& fields = people.via.array.ptr[person];
        if (fields.type != MSGPACK_OBJECT_MAP) throw std::runtime_error("a person that is no map");
        const auto track = integer(Header::find(fields.via.map, "track_id"));
        const size_t first = 4 * count + 3 * joints * person;  // boxes (P, 4), then keypoints (P, J, 3)
        std::printf("%s seq %lld track %lld joints %zu first %.2f %.2f %.2f\n", text(header["source"]).c_str(),
                    static_cast<long long>(integer(header["seq"])), static_cast<long long>(track), joints,
                    number(blob, first), number(blob, first + 1), number(blob, first + 2));
    }
}

using Last = std::map<std::string, std::pair<std::string, int64_t>>;  // run_id and seq of each source

// Prints the people of a pose message; false where it is a repetition, sent to greet somebody else.
bool print_message(const std::vector<std::string>& parts, Last& last) {
    if (parts.size() != 3) throw std::runtime_error("a message that has not three parts");
    const Header header(parts[1]);
    if (integer(header["schema"]) != 1) throw std::runtime_error("a message of another schema than 1");
    const auto source = text(header["source"]);
    const auto run = text(header["run_id"]);
    const auto seq = integer(header["seq"]);
    const auto before = last.find(source);
    if (before != last.end() && before->second.first == run) {
        if (seq <= before->second.second) return false;
        const auto missed = seq - before->second.second - 1;
        if (missed) std::fprintf(stderr, "%s: missed %lld\n", source.c_str(), static_cast<long long>(missed));
    }
    print_people(header, parts[2]);
    std::fflush(stdout);
    last[source] = {run, seq};
    return true;
}

}  // namespace

int main(int argc, char** argv) try {
    const char* endpoint = argc > 1 ? argv[1] : "tcp://127.0.0.1:5555";
    long frames = argc > 2 ? std::atol(argv[2]) : -1;
    void* context = zmq_ctx_new();
    void* socket = zmq_socket(context, ZMQ_SUB);
    const int64_t longest = 1 << 20;
    const int no_linger = 0;
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &longest, sizeof longest);
    zmq_setsockopt(socket, ZMQ_LINGER, &no_linger, sizeof no_linger);
    zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "pose.", 5);
    if (argc > 3) use_key(socket, argv[3]);
    void* events = watch(context, socket);
    if (zmq_connect(socket, endpoint) != 0) throw std::runtime_error(zmq_strerror(zmq_errno()));

    Last last;
    std::set<uint16_t> told;
    long skipped = 0;
    while (frames != 0) {
        zmq_pollitem_t items[] = {{socket, 0, ZMQ_POLLIN, 0}, {events, 0, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, 2, -1) < 0) throw std::runtime_error(zmq_strerror(zmq_errno()));
        if (items[1].revents) tell(receive(events), told);
        if (!items[0].revents) continue;
        const auto parts = receive(socket);
        try {
            if (print_message(parts, last) && frames > 0) --frames;
        } catch (const std::exception& error) {
            if (++skipped == 1) std::fprintf(stderr, "skipped a message: %s; more are only counted\n", error.what());
        }
    }
    if (skipped) std::fprintf(stderr, "skipped %ld in all\n", skipped);
    zmq_socket_monitor(socket, nullptr, 0);
    zmq_close(events);
    zmq_close(socket);
    zmq_ctx_term(context);
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
