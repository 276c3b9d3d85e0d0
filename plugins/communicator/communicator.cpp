#include "communicator.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <string>

namespace opfuse {
namespace {

constexpr char const* kVariable = "OPFUSE_COMMUNICATOR";
constexpr char const* kWayVariable = "OPFUSE_ALLREDUCE";
// Ahead of the inboxes: a Turn, a Watch, and a word, each in a line of its own.
constexpr size_t kTurnBytes = 512, kWatchAt = 128, kWordAt = 256;
constexpr size_t kInboxBytes = device::kInboxVectors * sizeof(uint4);
constexpr size_t kMemoryBytes = kTurnBytes + device::kInboxes * kInboxBytes;

// What a rank tells all others.
struct Card {
    char version[32];
    int32_t rank, size;
    int64_t inbox_vectors;
    char host[64];    // of this boot
    char device[16];  // the GPU's UUID
    int32_t has_nccl, way;
    cudaIpcMemHandle_t memory;
    NcclId nccl_id;  // of rank 0
};
static_assert(sizeof(Card) <= kCardBytes);

// Lives as long as the process: a watchdog may ask for it at any time.
struct Own {
    std::mutex making;
    Communicator it;
    Card card;
    std::string no_nccl, no_peers;
    std::atomic<bool> open{false}, joined{false};
    unsigned* health = nullptr;  // on the host
};

Own& own() {
    static Own* const it = new Own;
    return *it;
}

void check(cudaError_t status, char const* what) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

void need(bool condition, std::string const& what) {
    if (!condition) throw std::runtime_error(what);
}

Way asked_way() {
    char const* const text = std::getenv(kWayVariable);
    std::string const asked = text ? text : "";
    if (asked.empty()) return Way::kBySize;
    if (asked == "one-shot") return Way::kOneShot;
    if (asked == "two-shot") return Way::kTwoShot;
    if (asked == "nccl") return Way::kNccl;
    throw std::runtime_error(std::string(kWayVariable) + " is '" + asked +
                             "', need one-shot, two-shot, or nccl");
}

std::string name_of_host() {
    std::string id;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
    return id;
}

void allocate(Own& self) {
    Communicator& it = self.it;
    check(cudaMalloc(&it.memory, kMemoryBytes), "cudaMalloc of the inboxes");
    auto* const bytes = static_cast<char*>(it.memory);
    check(cudaMemset(bytes, 0, kTurnBytes), "cudaMemset");
    // Every word of an inbox that nobody has written to: device::kEmpty.
    check(cudaMemset(bytes + kTurnBytes, 0xff, kMemoryBytes - kTurnBytes), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaIpcGetMemHandle(&self.card.memory, it.memory), "cudaIpcGetMemHandle");
    it.peers.turn = reinterpret_cast<device::Turn*>(bytes);
    it.peers.watch = reinterpret_cast<device::Watch*>(bytes + kWatchAt);
}

void write_card(Own& self) {
    Communicator const& it = self.it;
    Card& card = self.card;
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, it.device), "cudaGetDeviceProperties");
    std::snprintf(card.version, sizeof card.version, "%s", OPFUSE_VERSION);
    std::snprintf(card.host, sizeof card.host, "%s", name_of_host().c_str());
    std::memcpy(card.device, &properties.uuid, sizeof card.device);
    card.rank = it.rank;
    card.size = it.size;
    card.inbox_vectors = device::kInboxVectors;
    card.way = static_cast<int32_t>(it.way);
    card.has_nccl = it.nccl.loaded();
    if (it.nccl.loaded() && it.rank == 0)
        it.nccl.check(it.nccl.get_id(&card.nccl_id), "ncclGetUniqueId");
}

void check_card(Card const& card, Card const& mine, int rank) {
    std::string const who = "rank " + std::to_string(rank);
    need(std::strncmp(card.version, mine.version, sizeof card.version) == 0 &&
             card.inbox_vectors == mine.inbox_vectors,
         who + " runs another version of opfuse than rank " + std::to_string(mine.rank));
    need(card.rank == rank && card.size == mine.size,
         who + " says that it is rank " + std::to_string(card.rank) + " of " +
             std::to_string(card.size) + ", not of " + std::to_string(mine.size));
    need(card.way == mine.way, who + " has another " + kWayVariable);
}

// False, and a reason in `no_peers`, where the memory of another rank cannot be reached.
bool open_peers(Own& self, Card const* cards) {
    Communicator& it = self.it;
    for (int rank = 0; rank < it.size; ++rank) {
        void* memory = it.memory;
        if (rank != it.rank) {
            if (std::strncmp(cards[rank].host, self.card.host, sizeof self.card.host) != 0) {
                self.no_peers = "rank " + std::to_string(rank) + " is on another host";
                return false;
            }
            cudaError_t const status =
                cudaIpcOpenMemHandle(&memory, cards[rank].memory, cudaIpcMemLazyEnablePeerAccess);
            if (status != cudaSuccess) {
                static_cast<void>(cudaGetLastError());
                self.no_peers = "memory of rank " + std::to_string(rank) +
                                " cannot be opened: " + cudaGetErrorString(status);
                return false;
            }
        }
        it.peers.inboxes[rank] = reinterpret_cast<uint4*>(static_cast<char*>(memory) + kTurnBytes);
    }
    return true;
}

void close_peers(Communicator& it) {
    for (int rank = 0; rank < it.size; ++rank)
        if (rank != it.rank && it.peers.inboxes[rank])
            cudaIpcCloseMemHandle(reinterpret_cast<char*>(it.peers.inboxes[rank]) - kTurnBytes);
}

// All ranks come to the same answer, from the cards alone: what follows is collective.
bool can_have_nccl(Own& self, Card const* cards) {
    for (int rank = 0; rank < self.it.size; ++rank) {
        if (!cards[rank].has_nccl) {
            if (self.no_nccl.empty())
                self.no_nccl = "rank " + std::to_string(rank) + " could not load it";
            return false;
        }
        for (int other = 0; other < rank; ++other)
            if (std::memcmp(cards[rank].device, cards[other].device, sizeof cards->device) == 0) {
                self.no_nccl = "two ranks share a GPU";
                return false;
            }
    }
    return true;
}

// Whether the memory of others can be reached from every rank; each may know of itself alone.
bool all_reach(Communicator const& it, bool reached) {
    auto* const word = reinterpret_cast<int32_t*>(static_cast<char*>(it.memory) + kWordAt);
    int32_t value = reached;
    check(cudaMemcpy(word, &value, sizeof value, cudaMemcpyHostToDevice), "cudaMemcpy");
    it.nccl.check(it.nccl.all_reduce(word, word, 1, kNcclInt32, kNcclMin, it.group, nullptr),
                  "ncclAllReduce");
    check(cudaMemcpy(&value, word, sizeof value, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return value != 0;
}

void join(Own& self, Card const* cards) {
    Communicator& it = self.it;
    for (int rank = 0; rank < it.size; ++rank) check_card(cards[rank], self.card, rank);
    bool reached = open_peers(self, cards);
    if (can_have_nccl(self, cards)) {
        void* group = nullptr;
        it.nccl.check(it.nccl.init_rank(&group, it.size, cards[0].nccl_id, it.rank),
                      "ncclCommInitRank");
        it.group = group;
        reached = all_reach(it, reached);
    }
    need(reached || it.group,
         "no way to the other ranks: " + self.no_peers + ", and there is no NCCL: " + self.no_nccl);
    need(it.way != Way::kNccl || it.group,
         std::string(kWayVariable) + " asks for NCCL: " + self.no_nccl);
    need(reached || it.way == Way::kBySize || it.way == Way::kNccl,
         std::string(kWayVariable) + " asks for peer memory: " + self.no_peers);
    it.has_peers = reached;
    std::string const nccl = it.group ? "NCCL " + it.nccl.version() : "";
    std::string const both = reached ? "peer memory" + (nccl.empty() ? "" : ", " + nccl) : nccl;
    std::snprintf(it.transport, sizeof it.transport, "%s", both.c_str());
}

// The address for copies of this library in this process, of the same version and layout.
std::string mark() {
    return std::to_string(getpid()) + ":" + OPFUSE_VERSION + ":" +
           std::to_string(sizeof(Communicator)) + ":";
}

void clear(Own& self) {
    Communicator& it = self.it;
    bool const well = !it.peers.health || it.health() == device::Health::kWell;
    // To destroy a group waits for the others, who may have died.
    if (void* const group = it.group.exchange(nullptr))
        well ? it.nccl.destroy(group) : it.nccl.abort(group);
    close_peers(it);
    cudaFree(it.memory);
    it.rank = 0, it.size = 1, it.device = 0;
    it.has_peers = false;
    it.memory = nullptr;
    it.peers = {};
    it.nccl = {};
    it.transport[0] = '\0';
    self.no_nccl = self.no_peers = "";
    self.open = self.joined = false;
}

}  // namespace

device::Health Communicator::health() const {
    return static_cast<device::Health>(*static_cast<unsigned volatile*>(peers.health));
}

Communicator const* communicator() {
    if (own().joined) return &own().it;
    char const* const text = std::getenv(kVariable);
    std::string const expected = mark();
    if (!text || std::strncmp(text, expected.c_str(), expected.size()) != 0) return nullptr;
    return reinterpret_cast<Communicator const*>(
        std::strtoull(text + expected.size(), nullptr, 16));
}

void open_communicator(int rank, int size, int64_t timeout_ms, char const* nccl, void* card) {
    Own& self = own();
    std::lock_guard const lock(self.making);
    need(!self.open, "this process has a communicator already");
    need(size >= 1 && size <= device::kMostRanks,
         std::to_string(size) + " ranks, need 1 to " + std::to_string(device::kMostRanks));
    need(rank >= 0 && rank < size && timeout_ms > 0 && card, "no such rank, time limit, or card");
    Communicator& it = self.it;
    it.way = asked_way();
    it.rank = it.peers.rank = rank;
    it.size = it.peers.size = size;
    it.peers.patience = static_cast<uint64_t>(timeout_ms) * 1000000;
    std::memset(static_cast<void*>(&self.card), 0, sizeof self.card);
    check(cudaGetDevice(&it.device), "cudaGetDevice");
    if (!self.health)
        check(cudaHostAlloc(reinterpret_cast<void**>(&self.health), sizeof(unsigned),
                            cudaHostAllocMapped | cudaHostAllocPortable),
              "cudaHostAlloc");
    *self.health = static_cast<unsigned>(device::Health::kWell);
    it.peers.health = self.health;  // one address for the host and the device
    if (nccl && !*nccl)
        self.no_nccl = "it was not asked for";
    else if (size > 1)
        it.nccl = load_nccl(nccl, self.no_nccl);
    self.open = true;
    try {
        if (size > 1) allocate(self);
        write_card(self);
    } catch (...) {
        clear(self);
        throw;
    }
    std::memset(card, 0, kCardBytes);
    std::memcpy(card, &self.card, sizeof self.card);
}

void join_communicator(void const* cards) {
    Own& self = own();
    std::lock_guard const lock(self.making);
    need(self.open && !self.joined && cards, "no communicator was opened, or it was joined before");
    Card all[device::kMostRanks];
    for (int rank = 0; rank < self.it.size; ++rank)
        std::memcpy(&all[rank], static_cast<char const*>(cards) + rank * kCardBytes, sizeof *all);
    if (self.it.size > 1) join(self, all);
    char address[32];
    std::snprintf(address, sizeof address, "%llx",
                  static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(&self.it)));
    setenv(kVariable, (mark() + address).c_str(), 1);
    self.joined = true;
}

void close_communicator() {
    Own& self = own();
    std::lock_guard const lock(self.making);
    if (!self.open) return;
    unsetenv(kVariable);
    self.joined = false;
    clear(self);
}

void abort_communicator() noexcept {
    Own& self = own();
    if (!self.open || !self.health) return;
    unsigned well = static_cast<unsigned>(device::Health::kWell);
    std::atomic_ref<unsigned>(*self.health)
        .compare_exchange_strong(well, static_cast<unsigned>(device::Health::kAborted));
    if (void* const group = self.it.group.exchange(nullptr)) self.it.nccl.abort(group);
}

int health_of_communicator() noexcept {
    Own const& self = own();
    return self.open && self.health ? static_cast<int>(self.it.health()) : -1;
}

char const* transport_of_communicator() noexcept { return own().it.transport; }

}  // namespace opfuse
