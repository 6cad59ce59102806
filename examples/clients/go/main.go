// One session from its opening to its close, with a refusal on the way: see ../README.md.
package main

import (
	"context"
	_ "embed"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	roost "roost.example/client/gen/roostv1"
)

//go:generate buf generate
//go:generate cp ../../../proto/roost/v1/service_config.json gen/

// Deadlines, waiting for a server that starts again, and repeats.
//
//go:embed gen/service_config.json
var serviceConfig string

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: client ADDRESS")
	}
	conn, err := grpc.NewClient(os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig()) // of what DNS may say instead
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	ctx := context.Background()
	if key := os.Getenv("ROOST_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}
	if err := run(ctx, roost.NewSessionServiceClient(conn), roost.NewTurnServiceClient(conn)); err != nil {
		explain(err)
		os.Exit(1)
	}
}

func run(ctx context.Context, sessions roost.SessionServiceClient, turns roost.TurnServiceClient) error {
	// Every mutation bears a request_id: with it a repeat, by gRPC or by us, has one effect.
	opened, err := sessions.OpenSession(ctx, &roost.OpenSessionRequest{RequestId: uuid.NewString()})
	if err != nil {
		return err
	}
	id := opened.Session.SessionId
	fmt.Println("opened", id)

	begun, err := turns.BeginTurn(ctx, &roost.BeginTurnRequest{SessionId: id, RequestId: uuid.NewString(), Owner: "example"})
	if err != nil {
		return err
	}
	fmt.Printf("began turn %d, attempt %d\n", begun.Grant.Turn, begun.Grant.Attempt)

	// A second session, made by its first turn. Where the cap is full it is refused, and nothing was made.
	second, err := turns.BeginTurn(ctx, &roost.BeginTurnRequest{
		SessionId: id + ".second", RequestId: uuid.NewString(), Owner: "example", Open: &roost.OpenOptions{},
	})
	if err == nil {
		fmt.Println("the server has room for a second turn")
		_, err = turns.CommitTurn(ctx, &roost.CommitTurnRequest{
			SessionId: id + ".second", RequestId: uuid.NewString(), Lease: second.Grant.Lease, Then: roost.Then_THEN_CLOSE,
		})
		if err != nil {
			return err
		}
	} else {
		explain(err)
	}

	committed, err := turns.CommitTurn(ctx, &roost.CommitTurnRequest{
		SessionId: id, RequestId: uuid.NewString(), Lease: begun.Grant.Lease,
		Record: &roost.RecordInput{Content: []byte("hello"), ContentType: "text/plain"},
	})
	if err != nil {
		return err
	}
	fmt.Printf("committed turn %d, head version %d\n", committed.Turn, committed.HeadVersion)

	closed, err := sessions.CloseSession(ctx, &roost.CloseSessionRequest{
		SessionId: id, RequestId: uuid.NewString(), Reason: roost.CloseReason_CLOSE_REASON_QUIT,
	})
	if err != nil {
		return err
	}
	fmt.Printf("closed after turn %d\n", closed.Receipt.TurnCount)
	return nil
}

// explain prints what a refusal says. Programs branch on the reason, never on the text.
func explain(err error) {
	refusal, ok := status.FromError(err)
	if !ok {
		log.Fatal(err)
	}
	fmt.Printf("refused: %s: %s\n", code.Code(refusal.Code()), refusal.Message())
	for _, detail := range refusal.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Println("  reason:", detail.Reason)
			for _, name := range slices.Sorted(maps.Keys(detail.Metadata)) {
				fmt.Printf("  %s: %s\n", name, detail.Metadata[name])
			}
		case *errdetails.RetryInfo:
			fmt.Printf("  retry after: %d ms\n", detail.RetryDelay.AsDuration().Milliseconds())
		case *errdetails.QuotaFailure:
			for _, violation := range detail.Violations {
				fmt.Printf("  quota: %s: %s\n", violation.Subject, violation.Description)
			}
		}
	}
}
